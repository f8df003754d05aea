/* png_filter.h - the Paeth filter of PNG (ISO/IEC 15948, 9.4), for reading and
 * writing.  Private to this folder. */
#ifndef SL_ENGINE_MEDIA_PNG_FILTER_H
#define SL_ENGINE_MEDIA_PNG_FILTER_H

#include <stdint.h>
#include <stdlib.h>

/* Which of the three neighbours is nearest to left + up - corner. */
static inline uint8_t sl_png_paeth(int left, int up, int corner)
{
    const int guess = left + up - corner;
    const int to_left = abs(guess - left);
    const int to_up = abs(guess - up);
    const int to_corner = abs(guess - corner);

    if (to_left <= to_up && to_left <= to_corner)
        return (uint8_t)left;
    return (uint8_t)(to_up <= to_corner ? up : corner);
}

#endif
