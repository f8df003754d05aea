/* cli_print.c - plans, refusals, receipts, jobs and the ledger for people. */
#include "clients/c/cli.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

/* "  denoise              12,582,912   12.00 MiB  note" */
static void print_line(FILE *f, const char *label, uint64_t size_bytes, const char *note)
{
    char exact[CLI_BYTES_TEXT], human[CLI_BYTES_TEXT];

    fprintf(f, "  %-34s %18s  %11s%s%s\n", label, cli_bytes(size_bytes, exact),
            cli_bytes_human(size_bytes, human), note[0] ? "  " : "", note);
}

static void print_signed_line(FILE *f, const char *label, int64_t size_bytes)
{
    const uint64_t magnitude = size_bytes < 0 ? -(uint64_t)size_bytes : (uint64_t)size_bytes;
    char exact[CLI_BYTES_TEXT], human[CLI_BYTES_TEXT], text[CLI_BYTES_TEXT + 1];

    snprintf(text, sizeof text, "%s%s", size_bytes < 0 ? "-" : "", cli_bytes(magnitude, exact));
    fprintf(f, "  %-34s %18s  %11s\n", label, text, cli_bytes_human(magnitude, human));
}

/* ---- plan, refusal, receipt, job ---- */

void cli_print_plan(FILE *f, const Sluice__V1__Plan *plan)
{
    char label[256];

    fprintf(f, "plan of %s in %s\n", plan->model, cli_precision_text(plan->precision));
    for (size_t i = 0; i < plan->n_components; i++) {
        const Sluice__V1__ComponentBytes *c = plan->components[i];

        snprintf(label, sizeof label, "weights %s", cli_component_text(c->component));
        print_line(f, label, c->planned_bytes, c->streamed ? "streamed" : "");
    }
    for (size_t i = 0; i < plan->n_phases; i++) {
        snprintf(label, sizeof label, "activations %s", plan->phases[i]->phase);
        print_line(f, label, plan->phases[i]->activation_bytes, "");
    }
    print_line(f, "activations mapped (largest phase)", plan->activation_bytes, "");
    print_line(f, "workspace", plan->workspace_bytes, "");
    print_line(f, "peak", plan->peak_bytes, "");
    print_line(f, "device", plan->device_bytes, "");
    if (plan->by_phase)
        fputs("  components take turns: the peak is that of the largest phase\n", f);
    if (plan->host_bytes > 0)
        print_line(f, "host memory, for streaming", plan->host_bytes, "");
    if (plan->n_streamed > 0)
        fprintf(f, "  expected slowdown by streaming: %.2f times\n", plan->slowdown);
    if (plan->estimate_ns > 0)
        fprintf(f, "  should run for %s\n", cli_duration(plan->estimate_ns, label));
    if (plan->table_row[0])
        fprintf(f, "  budget table row: %s\n", plan->table_row);
    for (size_t i = 0; i < plan->n_would_evict; i++)
        fprintf(f, "  gives back %s\n", plan->would_evict[i]);
}

void cli_print_refusal(FILE *f, const Sluice__V1__Refusal *refusal)
{
    const Sluice__V1__NearestRequest *nearest = refusal->nearest;
    char a[CLI_BYTES_TEXT], b[CLI_BYTES_TEXT];

    if (refusal->deadline_ns > 0) {
        fprintf(f, "not before its deadline: it would take %s, the deadline is in %s\n",
                cli_duration(refusal->estimate_ns, a), cli_duration(refusal->deadline_ns, b));
        return;
    }
    if (refusal->when == SLUICE__V1__REFUSAL__WHEN__AFTER)
        fprintf(f, "fits after %s\n", refusal->after);
    else
        fputs("can never fit on this device\n", f);
    print_line(f, "needs", refusal->need_bytes, "");
    print_line(f, "can have", refusal->have_bytes, "");
    for (size_t i = 0; i < refusal->n_held_by; i++) {
        char label[256];

        snprintf(label, sizeof label, "held by %s", refusal->held_by[i]->what);
        print_line(f, label, refusal->held_by[i]->size_bytes, "");
    }
    if (refusal->table_rule[0])
        fprintf(f, "  the budget table forbids it, row \"%s\": %s\n", refusal->table_row,
                refusal->table_rule);
    if (nearest && nearest->exists) {
        char human[CLI_BYTES_TEXT];

        fprintf(f, "  nearest that fits: %dx%d, %d frames, %s (%s)\n", nearest->width,
                nearest->height, nearest->frames, cli_precision_text(nearest->precision),
                cli_bytes_human(nearest->need_bytes, human));
    } else if (nearest && refusal->when == SLUICE__V1__REFUSAL__WHEN__NEVER) {
        fputs("  no smaller request of this model fits either\n", f);
    }
}

void cli_print_receipt(FILE *f, const Sluice__V1__Receipt *receipt)
{
    char label[512], duration[CLI_BYTES_TEXT], note[96], exact[CLI_BYTES_TEXT];

    for (size_t i = 0; i < receipt->n_components; i++) {
        const Sluice__V1__ComponentBytes *c = receipt->components[i];

        snprintf(label, sizeof label, "%s/%s %s", c->model, cli_component_text(c->component),
                 cli_precision_text(c->precision));
        snprintf(note, sizeof note, "planned %s", cli_bytes(c->planned_bytes, exact));
        print_line(f, label, c->measured_bytes, note);
    }
    print_line(f, "device before", receipt->device_before_bytes, "");
    print_line(f, "device after", receipt->device_after_bytes, "");
    print_line(f, "free after", receipt->free_after_bytes, "");
    print_signed_line(f, "residue", receipt->residue_bytes);
    fprintf(f, "  took %s\n", cli_duration(receipt->duration_ns, duration));
}

void cli_print_switch(FILE *f, const Sluice__V1__SwitchModelReply *reply)
{
    char duration[CLI_BYTES_TEXT], before[CLI_BYTES_TEXT], after[CLI_BYTES_TEXT];
    char peak[CLI_BYTES_TEXT];

    fprintf(f, "%-10s %10s %18s %18s %18s\n", "STEP", "TIME", "FREE BEFORE", "FREE AFTER", "PEAK");
    for (size_t i = 0; i < reply->n_steps; i++) {
        const Sluice__V1__SwitchStep *s = reply->steps[i];

        fprintf(f, "%-10s %10s %18s %18s %18s\n", s->name, cli_duration(s->duration_ns, duration),
                cli_bytes(s->free_before_bytes, before), cli_bytes(s->free_after_bytes, after),
                cli_bytes(s->peak_bytes, peak));
        if (s->receipt && s->receipt->n_components > 0)
            cli_print_receipt(f, s->receipt);
    }
    fprintf(f, "took %s\n", cli_duration(reply->duration_ns, duration));
}

void cli_print_job(FILE *f, const Sluice__V1__Job *job)
{
    char a[CLI_BYTES_TEXT];
    const Sluice__V1__GenerateRequest *r = job->request;

    fprintf(f, "job %s: %s", job->job_id, cli_state_text(job->state));
    if (job->state == SLUICE__V1__JOB_STATE__DENOISING)
        fprintf(f, ", step %d of %d", job->step, job->step_count);
    if (job->position > 0)
        fprintf(f, ", position %d", job->position);
    fprintf(f, "\n  model %s\n", job->model);
    if (r)
        fprintf(f, "  %dx%d, %d frames, %d steps, seed %" PRIu64 ", %s\n", r->width, r->height,
                r->frames, r->steps, r->seed, cli_precision_text(r->precision));
    if (job->attempt > 1)
        fprintf(f, "  attempt %d\n", job->attempt);
    if (job->resumed_from_step > 0)
        fprintf(f, "  continued behind step %d\n", job->resumed_from_step);
    if (job->estimated_start_ns > 0 && job->position > 0)
        fprintf(f, "  should start at %s\n", cli_time(job->estimated_start_ns, a));
    if (job->message[0])
        fprintf(f, "  %s\n", job->message);
    if (job->run_ns > 0)
        fprintf(f, "  ran %s\n", cli_duration(job->run_ns, a));
    if (job->planned_peak_bytes > 0)
        fprintf(f, "  planned peak %s bytes\n", cli_bytes(job->planned_peak_bytes, a));
    if (job->measured_peak_bytes > 0)
        fprintf(f, "  measured peak %s bytes\n", cli_bytes(job->measured_peak_bytes, a));
    if (job->output_size_bytes > 0)
        fprintf(f, "  output %s, %s bytes, sha256 %s\n", cli_format_text(job->output),
                cli_bytes(job->output_size_bytes, a), job->output_sha256);
    if (job->state == SLUICE__V1__JOB_STATE__QUEUED && job->waiting_for)
        cli_print_refusal(f, job->waiting_for);
}

/* ---- the ledger ---- */

static void print_holders(FILE *f, const Sluice__V1__DeviceMemory *m)
{
    for (size_t i = 0; i < m->n_components; i++) {
        const Sluice__V1__ComponentBytes *c = m->components[i];
        char label[512], note[192], exact[CLI_BYTES_TEXT], host[CLI_BYTES_TEXT];
        size_t used = 0;

        snprintf(label, sizeof label, "  %s/%s %s", c->model, cli_component_text(c->component),
                 cli_precision_text(c->precision));
        used = (size_t)snprintf(note, sizeof note, "planned %s%s%s%s",
                                cli_bytes(c->planned_bytes, exact), c->pinned ? ", pinned" : "",
                                c->users ? ", in use" : "", c->streamed ? ", streamed" : "");
        if (c->host_bytes > 0)
            used += (size_t)snprintf(note + used, sizeof note - used, ", %s in host memory",
                                     cli_bytes(c->host_bytes, host));
        if (c->n_models > 1)
            snprintf(note + used, sizeof note - used, ", shared by %zu models", c->n_models);
        print_line(f, label, c->measured_bytes, note);
    }
}

static void print_jobs(FILE *f, const Sluice__V1__DeviceMemory *m, bool reserved)
{
    for (size_t i = 0; i < m->n_jobs; i++) {
        const uint64_t size_bytes =
            reserved ? m->jobs[i]->reserved_bytes : m->jobs[i]->activation_bytes;
        char label[256];

        if (size_bytes == 0)
            continue;
        snprintf(label, sizeof label, "  job %s", m->jobs[i]->job_id);
        print_line(f, label, size_bytes, "");
    }
}

/* False: used and free do not make the limit. */
static bool print_host(FILE *f, const Sluice__V1__HostMemory *host)
{
    const bool sums = host->used_bytes + host->free_bytes == host->limit_bytes;

    print_line(f, "host tier, used", host->used_bytes, "");
    print_line(f, "host tier, free", host->free_bytes, "");
    print_line(f, "host tier", host->limit_bytes, sums ? "= the sum" : "NOT THE SUM");
    return sums;
}

static void print_history(FILE *f, const Sluice__V1__DeviceMemory *m)
{
    if (m->n_history > 0)
        fprintf(f, "  %-20s %18s %18s %6s\n", "HOUR", "ARENA PEAK", "HOST PEAK", "JOBS");
    for (size_t i = 0; i < m->n_history; i++) {
        const Sluice__V1__HourPeak *h = m->history[i];
        char when[CLI_BYTES_TEXT], peak[CLI_BYTES_TEXT], host[CLI_BYTES_TEXT];

        fprintf(f, "  %-20s %18s %18s %6u\n", cli_time(h->hour_ns, when),
                cli_bytes(h->peak_bytes, peak), cli_bytes(h->host_peak_bytes, host), h->jobs);
    }
}

bool cli_print_memory(FILE *f, const Sluice__V1__DeviceMemory *m)
{
    /* Modulo 2^64, as the parts of a true ledger never pass it. */
    const uint64_t sum = m->context_bytes + m->weights_bytes + m->activations_bytes +
                         m->workspace_bytes + m->reserved_bytes + m->foreign_bytes + m->free_bytes +
                         (uint64_t)m->unexplained_bytes;
    bool sums = sum == m->total_bytes;

    fprintf(f, "device %s, ", m->device);
    if (m->worker_up)
        fprintf(f, "worker %" PRId64, m->worker_pid);
    else
        fputs("no worker", f);
    fprintf(f, ", restarts %u\n", m->worker_restarts);
    print_line(f, "context", m->context_bytes, "");
    print_line(f, "weights", m->weights_bytes, "");
    print_holders(f, m);
    print_line(f, "activations", m->activations_bytes, "");
    print_jobs(f, m, false);
    print_line(f, "workspace", m->workspace_bytes, "");
    print_line(f, "reserved", m->reserved_bytes, "");
    print_jobs(f, m, true);
    print_line(f, "foreign", m->foreign_bytes, "");
    print_line(f, "free", m->free_bytes, "");
    print_signed_line(f, "unexplained", m->unexplained_bytes);
    print_line(f, "total", m->total_bytes, sums ? "= the sum" : "");
    if (!sums)
        print_signed_line(f, "NOT THE SUM: off by", (int64_t)(m->total_bytes - sum));
    print_line(f, "arena mapped (measured)", m->arena_mapped_bytes, "");
    print_line(f, "arena peak (measured)", m->arena_peak_bytes, "");
    if (m->host && m->host->limit_bytes > 0)
        sums = print_host(f, m->host) && sums;
    print_history(f, m);
    return sums;
}
