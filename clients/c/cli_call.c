/* cli_call.c - asking the daemon: clean strings, and Ctrl-C. */
#include "clients/c/cli.h"

#include "base/utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

/* ---- clean text ---- */

void cli_clean(char *text)
{
    uint8_t *to = (uint8_t *)text;
    size_t left = strlen(text);

    for (const uint8_t *p = to; left > 0;) {
        uint32_t code_point = 0;
        const size_t bytes = sl_utf8_decode(p, left, &code_point);
        const bool is_control = code_point < 0x20 || (code_point >= 0x7f && code_point < 0xa0);

        if (*p == '\n' || *p == '\t') {
            *to++ = ' ';
        } else if (bytes == 0 || is_control) {
            *to++ = '?';
        } else {
            memmove(to, p, bytes);
            to += bytes;
        }
        p += bytes ? bytes : 1;
        left -= bytes ? bytes : 1;
    }
    if (*to) /* the empty string of a message is a constant */
        *to = 0;
}

static void clean_field(const ProtobufCFieldDescriptor *field, void *at)
{
    if (field->type == PROTOBUF_C_TYPE_STRING && *(char **)at)
        cli_clean(*(char **)at);
    else if (field->type == PROTOBUF_C_TYPE_MESSAGE && *(void **)at)
        cli_clean_message(*(void **)at);
}

void cli_clean_message(void *message)
{
    const ProtobufCMessageDescriptor *type = ((const ProtobufCMessage *)message)->descriptor;
    char *base = message;

    for (unsigned i = 0; i < type->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &type->fields[i];

        if (field->type != PROTOBUF_C_TYPE_STRING && field->type != PROTOBUF_C_TYPE_MESSAGE)
            continue;
        if (field->label != PROTOBUF_C_LABEL_REPEATED) {
            clean_field(field, base + field->offset);
            continue;
        }
        const size_t count = *(const size_t *)(const void *)(base + field->quantifier_offset);
        void **items = *(void ***)(void *)(base + field->offset);
        for (size_t k = 0; k < count; k++)
            clean_field(field, &items[k]);
    }
}

sl_status cli_call(cli *c, const char *method, const ProtobufCMessage *request,
                   const ProtobufCMessageDescriptor *reply_type, int64_t timeout_ns,
                   ProtobufCMessage **out)
{
    sl_call_details_fini(&c->details);
    const sl_status status = sl_client_call(c->client, method, request, reply_type, timeout_ns, out,
                                            &c->details, &c->err);

    if (!c->opt.json && status == SL_OK)
        cli_clean_message(*out);
    return status;
}

/* ---- Ctrl-C ---- */

static int interrupt_pipe[2] = { -1, -1 };

static void on_interrupt(int signal_number)
{
    const int saved = errno;
    const ssize_t n = write(interrupt_pipe[1], "x", 1);

    (void)signal_number;
    (void)n; /* full: it is readable, which is all that counts */
    errno = saved;
}

sl_status cli_catch_interrupts(cli *c)
{
    struct sigaction action = { .sa_handler = on_interrupt };

    if (pipe2(interrupt_pipe, O_CLOEXEC | O_NONBLOCK) < 0)
        return sl_fail_errno(&c->err, "could not create a pipe");
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGINT, &action, NULL) < 0 || sigaction(SIGTERM, &action, NULL) < 0)
        return sl_fail_errno(&c->err, "could not catch interrupts");
    sl_client_set_interrupt(c->client, interrupt_pipe[0]);
    return SL_OK;
}

void cli_forget_interrupts(void)
{
    char byte;

    while (read(interrupt_pipe[0], &byte, 1) == 1)
        ;
}

int cli_interrupt_fd(void)
{
    return interrupt_pipe[0];
}
