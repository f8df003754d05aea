/* cli_test.c - options, JSON and the ledger's text of the sluice command. */
#include "base/test.h"
#include "clients/c/cli.h"

#include <string.h>
#include <unistd.h>

static const cli_command generate = {
    .name = "generate",
    .args = "\"PROMPT\"",
    .options = "model output width seed sigma-max component detach",
    .min_args = 1,
    .max_args = 1,
};
static const cli_command local = {
    .name = "inspect",
    .args = "DIR",
    .options = "",
    .min_args = 1,
    .max_args = 1,
    .local = true,
};

static sl_status parse(const cli_command *command, cli_options *out, sl_error *err,
                       const char *const *words)
{
    char *argv[32];
    int argc = 0;

    for (; words[argc]; argc++)
        argv[argc] = (char *)words[argc];
    return cli_parse(command, argc, argv, out, err);
}

#define WORDS(...) ((const char *const[]){ __VA_ARGS__, NULL })

SL_TEST(options_in_every_form)
{
    cli_options o;

    SL_CHECK_OK(parse(&generate, &o, err,
                      WORDS("-mtiny", "--width=64", "a cat", "-o", "x.mp4", "--seed",
                            "18446744073709551615", "--sigma-max", "80.5", "-c", "dit",
                            "--component=vae", "-d", "--json", "-t5", "--socket", "/s")));
    SL_CHECK(strcmp(o.model, "tiny") == 0 && o.width == 64 && strcmp(o.output, "x.mp4") == 0);
    SL_CHECK(o.seed == UINT64_MAX && o.sigma_max > 80.4 && o.sigma_max < 80.6);
    SL_CHECK(o.component_count == 2 && strcmp(o.components[1], "vae") == 0);
    SL_CHECK(o.detach && o.json && o.timeout_s == 5 && strcmp(o.socket, "/s") == 0);
    SL_CHECK(o.arg_count == 1 && strcmp(o.args[0], "a cat") == 0);

    SL_CHECK_OK(parse(&generate, &o, err, WORDS("--", "--a prompt like an option")));
    SL_CHECK(strcmp(o.args[0], "--a prompt like an option") == 0);
    SL_CHECK_OK(parse(&generate, &o, err, WORDS("-")));
    SL_CHECK(strcmp(o.args[0], "-") == 0);
}

SL_TEST(wrong_command_lines)
{
    const char *const *const cases[] = {
        WORDS("x", "--nothing", "1"),
        WORDS("x", "--frames", "9"),
        WORDS("x", "--width"),
        WORDS("x", "--width", "0"),
        WORDS("x", "--width", "-5"),
        WORDS("x", "--width", "2147483648"),
        WORDS("x", "--width", "6x"),
        WORDS("x", "--width", ""),
        WORDS("x", "--sigma-max", "nan"),
        WORDS("x", "--sigma-max", "0"),
        WORDS("x", "--detach=yes"),
        WORDS("x", "y"),
        WORDS("--json"),
        WORDS("x", "--seed", "18446744073709551616"),
        WORDS("x", "-z"),
        WORDS("x", "--wid", "3"),
        WORDS("x", "--widthx=3"),
        WORDS("x", "-c1", "-c2", "-c3", "-c4", "-c5", "-c6", "-c7", "-c8", "-c9"),
    };
    cli_options o;

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        sl_error_clear(err);
        if (parse(&generate, &o, err, cases[i]) != SL_ERR_INVALID || !err->message[0])
            fail_msg("case %zu was accepted", i);
    }
    /* What needs no daemon has no --socket. */
    SL_CHECK_STATUS(parse(&local, &o, err, WORDS("x", "--socket", "/s")), SL_ERR_INVALID);
    SL_CHECK_OK(parse(&local, &o, err, WORDS("--help")));
}

SL_TEST(resolutions)
{
    static const char *const wrong[] = { "",       "480",    "480P",          "x",
                                         "1x",     "x1",     "0x16",          "16x16x16",
                                         "16x-16", "16 x16", "99999999999x16" };
    int64_t w = 0, h = 0;

    SL_CHECK(cli_parse_resolution("480p", &w, &h) && w == 832 && h == 480);
    SL_CHECK(cli_parse_resolution("720p", &w, &h) && w == 1280 && h == 720);
    SL_CHECK(cli_parse_resolution("48x1040", &w, &h) && w == 48 && h == 1040);
    for (size_t i = 0; i < SL_COUNT(wrong); i++)
        if (cli_parse_resolution(wrong[i], &w, &h))
            fail_msg("\"%s\" was accepted", wrong[i]);
}

SL_TEST(durations)
{
    static const char *const wrong[] = { "",       "0",   "-1s", "7w", "1.5h",
                                         "d",      "1 h", "1hh", "s",  "99999999999999999999",
                                         "106752d" };
    int64_t ns = 0;

    SL_CHECK(cli_parse_duration("90", &ns) && ns == 90 * SL_NS_PER_S);
    SL_CHECK(cli_parse_duration("90s", &ns) && ns == 90 * SL_NS_PER_S);
    SL_CHECK(cli_parse_duration("15m", &ns) && ns == 900 * SL_NS_PER_S);
    SL_CHECK(cli_parse_duration("2h", &ns) && ns == 7200 * SL_NS_PER_S);
    SL_CHECK(cli_parse_duration("106751d", &ns) && ns == (int64_t)106751 * 86400 * SL_NS_PER_S);
    for (size_t i = 0; i < SL_COUNT(wrong); i++)
        if (cli_parse_duration(wrong[i], &ns))
            fail_msg("\"%s\" was accepted", wrong[i]);
}

SL_TEST(cleaned_text)
{
    static const struct {
        const char *from, *to;
    } cases[] = {
        { "", "" },
        { "plain", "plain" },
        { "h\xc3\xa9 \xe2\x82\xac \xf0\x9f\x8e\xac", "h\xc3\xa9 \xe2\x82\xac \xf0\x9f\x8e\xac" },
        { "a\nb\tc", "a b c" },
        { "\x1b[31m\x7f\r", "?[31m??" },
        { "\xc2\x9bx\xc2\x80\xc2\xa0", "?x?\xc2\xa0" },
        { "\x9b\xff\xc0\xaf", "????" },
        { "cut \xe2\x82", "cut ??" },
        { "cut \xc3", "cut ?" },
    };
    char text[64];

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        snprintf(text, sizeof text, "%s", cases[i].from);
        cli_clean(text);
        if (strcmp(text, cases[i].to) != 0)
            fail_msg("case %zu became \"%s\"", i, text);
    }
}

SL_TEST(numbers_for_people)
{
    char buf[CLI_BYTES_TEXT];

    SL_CHECK(strcmp(cli_bytes(0, buf), "0") == 0);
    SL_CHECK(strcmp(cli_bytes(999, buf), "999") == 0);
    SL_CHECK(strcmp(cli_bytes(1000, buf), "1,000") == 0);
    SL_CHECK(strcmp(cli_bytes(UINT64_MAX, buf), "18,446,744,073,709,551,615") == 0);
    SL_CHECK(strcmp(cli_duration(12340 * SL_NS_PER_MS, buf), "12.3 s") == 0);
    SL_CHECK(strcmp(cli_duration(15 * SL_NS_PER_MS, buf), "15.0 ms") == 0);
    SL_CHECK(strcmp(cli_duration(605 * SL_NS_PER_S, buf), "10 min 05 s") == 0);
}

SL_TEST(json_keeps_every_bit)
{
    Sluice__V1__Job job = SLUICE__V1__JOB__INIT;
    Sluice__V1__Plan plan = SLUICE__V1__PLAN__INIT;
    Sluice__V1__PhaseBytes phase = SLUICE__V1__PHASE_BYTES__INIT, *phases = &phase;
    Sluice__V1__Component used[] = { SLUICE__V1__COMPONENT__TEXT_ENCODER,
                                     SLUICE__V1__COMPONENT__DIT_HIGH };
    char *evict[] = { "a\"b\n" };

    job.state = SLUICE__V1__JOB_STATE__CANCELLED_STATE;
    job.submitted_ns = INT64_MIN;
    job.planned_peak_bytes = UINT64_MAX;
    job.plan = &plan;
    plan.precision = SLUICE__V1__PRECISION__PRECISION_DEFAULT;
    plan.n_phases = 1;
    plan.phases = &phases;
    phase.phase = "denoise";
    phase.n_components = 2;
    phase.components = used;
    plan.n_would_evict = 1;
    plan.would_evict = evict;

    cJSON *object = cli_json_message(&job);
    char *text = cJSON_PrintUnformatted(object);
    static const char *const want[] = {
        "\"state\":\"cancelled\"",
        "\"submitted_ns\":-9223372036854775808",
        "\"planned_peak_bytes\":18446744073709551615",
        "\"precision\":\"default\"",
        "\"components\":[\"text_encoder\",\"dit_high\"]",
        "\"would_evict\":[\"a\\\"b\\n\"]",
        "\"waiting_for\":null",
        "\"message\":\"\"",
        "\"code\":0",
    };
    for (size_t i = 0; i < SL_COUNT(want); i++)
        if (!strstr(text, want[i]))
            fail_msg("%s is not in %s", want[i], text);
    cJSON_free(text);
    cJSON_Delete(object);
}

/* cli_print_memory into a string; true when it says that the ledger sums. */
static bool print_ledger(const Sluice__V1__DeviceMemory *m, char *text, size_t text_bytes)
{
    FILE *f = fmemopen(text, text_bytes, "w");
    const bool sums = cli_print_memory(f, m);

    fclose(f);
    return sums;
}

SL_TEST(a_ledger_that_does_not_sum_says_so)
{
    Sluice__V1__DeviceMemory m = SLUICE__V1__DEVICE_MEMORY__INIT;
    char text[8192];

    m.context_bytes = 100;
    m.weights_bytes = 20;
    m.free_bytes = 1000;
    m.unexplained_bytes = -20;
    m.total_bytes = 1100;
    SL_CHECK(print_ledger(&m, text, sizeof text));
    SL_CHECK(strstr(text, "= the sum") && strstr(text, "-20"));
    m.total_bytes = 1099;
    SL_CHECK(!print_ledger(&m, text, sizeof text));
    SL_CHECK(strstr(text, "NOT THE SUM") && strstr(text, "-1"));
}

SL_TEST_MAIN(SL_RUN(options_in_every_form), SL_RUN(wrong_command_lines), SL_RUN(resolutions),
             SL_RUN(durations), SL_RUN(cleaned_text), SL_RUN(numbers_for_people),
             SL_RUN(json_keeps_every_bit), SL_RUN(a_ledger_that_does_not_sum_says_so))
