#include "service/door.h"

const sl_door_family_text sl_door_families[SL_DOOR_FAMILY_COUNT] = {
#define SL_X(name, text, label, help) { text, label, help },
    SL_DOOR_FAMILIES(SL_X)
#undef SL_X
};

const sl_door_count_text sl_door_counts[SL_DOOR_COUNT] = {
#define SL_X(name, family, value, text) { SL_DOOR_FAMILY_##family, value, text },
    SL_DOOR_COUNTS(SL_X)
#undef SL_X
};

const char *const sl_door_states[SL_DOOR_STATE_COUNT] = {
#define SL_X(name, text) text,
    SL_DOOR_STATES(SL_X)
#undef SL_X
};
