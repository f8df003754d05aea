#include "base/config.h"

#include "base/test.h"

#include <string.h>
#include <unistd.h>

typedef struct {
    uint32_t queue, watchers;
} limits;

typedef struct {
    char *device;
    const char **models;
    uint32_t models_count;
    limits limits;
    int level;
} sample;

static const cyaml_schema_value_t text_value = { CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 1,
                                                                    64) };
static const cyaml_strval_t levels[] = { { "low", 1 }, { "high", 2 } };
static const cyaml_schema_field_t limit_fields[] = {
    CYAML_FIELD_UINT("queue", CYAML_FLAG_OPTIONAL, limits, queue),
    CYAML_FIELD_UINT("watchers", CYAML_FLAG_OPTIONAL, limits, watchers),
    CYAML_FIELD_END,
};
static const cyaml_schema_field_t fields[] = {
    CYAML_FIELD_STRING_PTR("device", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, sample, device, 1,
                           64),
    CYAML_FIELD_SEQUENCE("models", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, sample, models,
                         &text_value, 0, 4),
    CYAML_FIELD_MAPPING("limits", CYAML_FLAG_OPTIONAL, sample, limits, limit_fields),
    CYAML_FIELD_ENUM("level", CYAML_FLAG_OPTIONAL | CYAML_FLAG_STRICT, sample, level, levels, 2),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t schema = { CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, sample,
                                                                 fields) };

static sl_status parse(sl_config **out, const char *text, sl_error *err)
{
    return sl_config_parse(out, "a.yaml", text, strlen(text), &schema, err);
}

SL_TEST(reads_what_the_schema_names)
{
    sl_config *config = NULL;

    SL_CHECK_OK(parse(&config,
                      "# comment\ndevice: cpu:1GiB\nmodels:\n  - /a\n  - /b\nlimits:\n"
                      "  queue: 0\nlevel: high\n",
                      err));
    const sample *v = sl_config_values(config);
    SL_CHECK(strcmp(v->device, "cpu:1GiB") == 0);
    SL_CHECK(v->models_count == 2 && strcmp(v->models[1], "/b") == 0);
    SL_CHECK(v->level == 2);
    SL_CHECK(v->limits.queue == 0 && sl_config_has(config, "limits.queue"));
    SL_CHECK(!sl_config_has(config, "limits.watchers"));
    sl_config_close(config);
}

SL_TEST(an_empty_file_is_an_empty_mapping)
{
    static const char *const texts[] = { "", "\n\n", "# nothing\n", "{}", "---\n{}\n" };

    for (size_t i = 0; i < SL_COUNT(texts); i++) {
        sl_config *config = NULL;
        SL_CHECK_OK(parse(&config, texts[i], err));
        SL_CHECK(((const sample *)sl_config_values(config))->device == NULL);
        sl_config_close(config);
    }
    sl_config_close(NULL);
}

/* Each: text, and what the message must hold. */
static const struct {
    const char *text, *where, *what;
} broken[] = {
    { "device: cpu\nfoo: 2\n", "\"a.yaml\", line 2, key \"foo\"", "no such key" },
    { "limits:\n  queue: 1\n  zap: 1\n", "line 3, key \"limits.zap\"", "no such key" },
    { "limits:\n  queue: -1\n", "line 2, key \"limits.queue\"", "'-1'" },
    { "limits:\n  queue: 99999999999\n", "line 2, key \"limits.queue\"", "99999999999" },
    { "limits:\n  queue:\n", "line 2, key \"limits.queue\"", "Invalid" },
    { "models: 3\n", "line 1, key \"models\"", "SEQUENCE" },
    { "models:\n - a\n - b: 1\n", "line 3, key \"models[2]\"", "MAPPING" },
    { "models: [a, b, c, d, e]\n", "key \"models", "" },
    { "device: cpu\ndevice: cpu\n", "line 2, key \"device\"", "already given in line 1" },
    { "device: [\n", "line 2", "" },
    { "device: a\n\tx: 1\n", "line 2", "" },
    { "- a\n", "a.yaml", "MAPPING" },
    { "level: middling\n", "line 1, key \"level\"", "middling" },
    { "device: &x cpu\nlevel: *x\n", "line 2", "aliases" },
    { "device: a\n---\ndevice: b\n", "line 2", "second document" },
    { "device: \xff\n", "a.yaml", "UTF-8" },
    { "? [a, b]\n: c\n", "line 1", "a key must be a word" },
    { "device: "
      "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n",
      "line 1, key \"device\"", "length" },
};

SL_TEST(errors_name_file_line_and_key)
{
    for (size_t i = 0; i < SL_COUNT(broken); i++) {
        sl_config *config = NULL;
        SL_CHECK_STATUS(parse(&config, broken[i].text, err), SL_ERR_DATA);
        SL_CHECK(config == NULL);
        if (!strstr(err->message, broken[i].where) || !strstr(err->message, broken[i].what))
            fail_msg("case %zu: \"%s\" does not say %s and %s", i, err->message, broken[i].where,
                     broken[i].what);
    }
}

SL_TEST(deep_nesting_is_refused)
{
    char text[4096];
    sl_config *config = NULL;

    memcpy(text, "models: ", 8);
    memset(text + 8, '[', 2000);
    text[2008] = '\0';
    SL_CHECK_STATUS(parse(&config, text, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "nested deeper"));
}

SL_TEST(later_checks_can_blame_a_key)
{
    sl_config *config = NULL;

    SL_CHECK_OK(parse(&config, "limits:\n\n  queue: 7\n", err));
    sl_fail(err, SL_ERR_INVALID, "7 is too many");
    SL_CHECK(sl_config_blame(config, "limits.queue", err) == SL_ERR_INVALID);
    SL_CHECK(strcmp(err->message, "\"a.yaml\", line 3, key \"limits.queue\": 7 is too many") == 0);
    sl_fail(err, SL_ERR_INVALID, "no");
    sl_config_blame(config, "absent", err);
    SL_CHECK(strcmp(err->message, "\"a.yaml\", key \"absent\": no") == 0);
    sl_config_close(config);
}

SL_TEST(files_are_read_and_checked)
{
    char path[] = "/tmp/sl_config_test_XXXXXX";
    sl_config *config = NULL;
    const int fd = mkstemp(path);

    SL_CHECK(fd >= 0);
    SL_CHECK(write(fd, "device: cpu\n", 12) == 12);
    SL_CHECK_OK(sl_config_open(&config, path, &schema, err));
    SL_CHECK(strcmp(((const sample *)sl_config_values(config))->device, "cpu") == 0);
    sl_config_close(config);
    SL_CHECK(ftruncate(fd, (1 << 20) + 1) == 0);
    SL_CHECK_STATUS(sl_config_open(&config, path, &schema, err), SL_ERR_DATA);
    close(fd);
    unlink(path);
    SL_CHECK_STATUS(sl_config_open(&config, path, &schema, err), SL_ERR_NOT_FOUND);
    SL_CHECK(strstr(err->message, path));
    SL_CHECK_STATUS(sl_config_open(&config, "/dev/null", &schema, err), SL_ERR_DATA);
    SL_CHECK_STATUS(sl_config_open(&config, "/", &schema, err), SL_ERR_DATA);
}

SL_TEST_MAIN(SL_RUN(reads_what_the_schema_names), SL_RUN(an_empty_file_is_an_empty_mapping),
             SL_RUN(errors_name_file_line_and_key), SL_RUN(deep_nesting_is_refused),
             SL_RUN(later_checks_can_blame_a_key), SL_RUN(files_are_read_and_checked))
