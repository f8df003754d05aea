/* budget.h - the memory budget table: what a device of some size must not do.
 *
 * Rows only forbid: whatever no row forbids is the plan's to decide.  A row
 * holds for one kind of device and a range of its memory; its rules are
 * conditions, all of which must hold for the rule to forbid.  The default table has
 * rows for cuda only; the kind cpu has none.
 *
 * All types are plain values.  Threads: a table is read-only once filled.
 */
#ifndef SL_SERVICE_BUDGET_H
#define SL_SERVICE_BUDGET_H

#include "base/status.h"
#include "engine/model/config.h"
#include "engine/pipeline/t2v.h"
#include "kernels/device.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    SL_BUDGET_NAME_BYTES = 128,
    SL_BUDGET_TEXT_BYTES = 160,
    SL_BUDGET_MAX_ROWS = 16,
    SL_BUDGET_MAX_RULES = 8,
};

/* A DiT with at least so many parameters is of the 14B class. */
#define SL_BUDGET_14B_CLASS ((uint64_t)10000000000)

/* Conditions; one that is left at its zero holds for everything. */
typedef struct {
    char text[SL_BUDGET_TEXT_BYTES];  /* the rule in words, for refusals */
    char model[SL_BUDGET_NAME_BYTES]; /* the name of a model or of its architecture */
    uint64_t dit_params_from;         /* the DiT has at least so many parameters */
    unsigned precisions;              /* set of 1u << sl_precision */
    unsigned attentions;              /* set of 1u << sl_attention_mode; of requests alone */
    bool dit_whole;                   /* the DiT would be resident as a whole */
    bool experts_together;            /* two experts of one model would be resident at once */
    int64_t pixels_above;             /* width * height is more */
    int frames_above;
} sl_budget_rule;

typedef struct {
    char name[SL_BUDGET_NAME_BYTES]; /* "16GiB to 40GiB" */
    sl_device_kind kind;
    size_t from_bytes, to_bytes;     /* of device memory, both included */
    char hint[SL_BUDGET_TEXT_BYTES]; /* known good, for people */
    int rule_count;
    sl_budget_rule rules[SL_BUDGET_MAX_RULES];
} sl_budget_row;

typedef struct {
    int row_count;
    sl_budget_row rows[SL_BUDGET_MAX_ROWS];
} sl_budget_table; /* some 60 KiB: not for the stack */

/* What the rules look at. */
typedef struct {
    char model[SL_BUDGET_NAME_BYTES]; /* as clients name it */
    char arch[SL_BUDGET_NAME_BYTES];
    uint64_t dit_params; /* 0: no DiT is involved */
    sl_precision precision;
    sl_attention_mode attention; /* of a request */
    bool dit_whole;            /* false: none is involved, or it is streamed */
    int experts;               /* of the model, resident at once */
    int width, height, frames; /* 0: no request, a load */
} sl_budget_facts;

/* components: set of 1u << sl_component_kind that the request or load brings
 * in.  request NULL: a load. */
sl_status sl_budget_facts_make(sl_budget_facts *out, const char *model, const sl_arch *arch,
                               unsigned components, sl_precision precision,
                               const sl_t2v_request *request, sl_error *err) SL_MUST_CHECK;

void sl_budget_table_default(sl_budget_table *out);
/* budget.yaml; replaces the default as a whole.  Errors name file, line and
 * key.  Rows of one kind must not overlap. */
sl_status sl_budget_table_load(sl_budget_table *out, const char *path, sl_error *err) SL_MUST_CHECK;
/* The same from memory; name stands for the file in messages. */
sl_status sl_budget_table_parse(sl_budget_table *out, const char *name, const char *text,
                                size_t length, sl_error *err) SL_MUST_CHECK;

/* The row that governs a device, or NULL. */
const sl_budget_row *sl_budget_find_row(const sl_budget_table *table, sl_device_kind kind,
                                        size_t device_bytes);
/* The first rule of the row that forbids, or NULL: allowed.  row may be NULL. */
const sl_budget_rule *sl_budget_find_rule(const sl_budget_row *row, const sl_budget_facts *facts);

#endif
