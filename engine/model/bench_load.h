/* bench_load.h - the part of the bench program that reads checkpoints. */
#ifndef SL_ENGINE_MODEL_BENCH_LOAD_H
#define SL_ENGINE_MODEL_BENCH_LOAD_H

#include "base/status.h"

#include <stdbool.h>

/* Loads a checkpoint into host memory several times from the disk, in turns with
 * what dd does (direct reads of 16 MiB, one after the other, into memory that
 * has been touched), and prints both rates. */
sl_status sl_bench_load(const char *path, bool json, sl_error *err) SL_MUST_CHECK;

#endif
