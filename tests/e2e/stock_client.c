/* stock_client.c - an nng REQ client as anybody would write it: libnng and what the
 * .proto generates, nothing of sluice.
 *
 * usage: stock_client URL CA CERT_AND_KEY SERVER_NAME MODEL OUT [JOB CHUNK_BYTES]
 *
 * Loads the model, has a video made, watches the job and fetches the file; with JOB it
 * fetches that one's file only, in pieces of CHUNK_BYTES.
 */
#include "api/sluice.pb-c.h"

#include <nng/nng.h>
#include <nng/protocol/reqrep0/req.h>
#include <nng/supplemental/tls/tls.h>
#include <nng/transport/tls/tls.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TIMEOUT_MS = 60000, CHUNK_BYTES = 3000, MAX_CHUNK_BYTES = 4 << 20 };

static void check(int code, const char *what)
{
    if (code == 0)
        return;
    fprintf(stderr, "stock_client: %s: %s\n", what, nng_strerror(code));
    exit(1);
}

static nng_socket dial(char **argv)
{
    nng_socket socket;
    nng_dialer dialer;
    nng_tls_config *config;

    nng_tls_register();
    check(nng_req0_open(&socket), "open");
    check(nng_socket_set_ms(socket, NNG_OPT_RECVTIMEO, TIMEOUT_MS), "timeout");
    check(nng_socket_set_ms(socket, NNG_OPT_REQ_RESENDTIME, -1), "resend time");
    check(nng_socket_set_size(socket, NNG_OPT_RECVMAXSZ, MAX_CHUNK_BYTES + (64 << 10)), "size");
    check(nng_tls_config_alloc(&config, NNG_TLS_MODE_CLIENT), "TLS");
    check(nng_tls_config_ca_file(config, argv[2]), "CA");
    check(nng_tls_config_cert_key_file(config, argv[3], NULL), "certificate and key");
    check(nng_tls_config_server_name(config, argv[4]), "server name");
    check(nng_tls_config_auth_mode(config, NNG_TLS_AUTH_MODE_REQUIRED), "auth mode");
    check(nng_dialer_create(&dialer, socket, argv[1]), "dialer");
    check(nng_dialer_set_ptr(dialer, NNG_OPT_TLS_CONFIG, config), "TLS of the dialer");
    check(nng_dialer_start(dialer, 0), "dial");
    nng_tls_config_free(config);
    return socket;
}

static void *call(nng_socket socket, const char *method, const ProtobufCMessage *request,
                  const ProtobufCMessageDescriptor *type)
{
    Sluice__V1__Envelope envelope = SLUICE__V1__ENVELOPE__INIT;
    char name[128];
    void *bytes = NULL;
    size_t size = 0;

    snprintf(name, sizeof name, "sluice.v1.Inference/%s", method);
    envelope.method = name;
    envelope.api_version = 1;
    envelope.payload.len = protobuf_c_message_get_packed_size(request);
    envelope.payload.data = malloc(envelope.payload.len + 1);
    protobuf_c_message_pack(request, envelope.payload.data);
    size = sluice__v1__envelope__get_packed_size(&envelope);
    bytes = malloc(size);
    sluice__v1__envelope__pack(&envelope, bytes);
    check(nng_send(socket, bytes, size, 0), "send");
    free(bytes);
    free(envelope.payload.data);
    check(nng_recv(socket, &bytes, &size, NNG_FLAG_ALLOC), "receive");
    Sluice__V1__Reply *reply = sluice__v1__reply__unpack(NULL, size, bytes);
    nng_free(bytes, size);
    if (!reply || reply->code != 0) {
        fprintf(stderr, "stock_client: %s: %s\n", method, reply ? reply->message : "no Reply");
        exit(1);
    }
    void *out = protobuf_c_message_unpack(type, NULL, reply->payload.len, reply->payload.data);
    sluice__v1__reply__free_unpacked(reply, NULL);
    return out;
}

static void watch(nng_socket socket, char *job_id)
{
    Sluice__V1__WatchJobRequest request = SLUICE__V1__WATCH_JOB_REQUEST__INIT;
    Sluice__V1__JobState state;

    request.job_id = job_id;
    request.wait_ns = 5000000000;
    do {
        Sluice__V1__WatchJobReply *reply =
            call(socket, "WatchJob", &request.base, &sluice__v1__watch_job_reply__descriptor);
        for (size_t i = 0; i < reply->n_events; i++)
            request.after_seq = reply->events[i]->seq;
        state = reply->job->state;
        sluice__v1__watch_job_reply__free_unpacked(reply, NULL);
    } while (state < SLUICE__V1__JOB_STATE__DONE);
    if (state != SLUICE__V1__JOB_STATE__DONE) {
        fprintf(stderr, "stock_client: the job ended in state %d\n", (int)state);
        exit(1);
    }
}

static void fetch(nng_socket socket, char *job_id, const char *path, uint32_t chunk_bytes)
{
    Sluice__V1__FetchOutputRequest request = SLUICE__V1__FETCH_OUTPUT_REQUEST__INIT;
    uint64_t size = 1;
    FILE *f = fopen(path, "wb");

    request.job_id = job_id;
    request.max_bytes = chunk_bytes;
    while (request.offset < size) {
        Sluice__V1__FetchOutputReply *reply =
            call(socket, "FetchOutput", &request.base, &sluice__v1__fetch_output_reply__descriptor);
        if (!f || fwrite(reply->data.data, 1, reply->data.len, f) != reply->data.len) {
            fprintf(stderr, "stock_client: could not write %s\n", path);
            exit(1);
        }
        request.offset += reply->data.len;
        size = reply->size_bytes;
        if (request.offset >= size)
            puts(reply->sha256);
        sluice__v1__fetch_output_reply__free_unpacked(reply, NULL);
    }
    fclose(f);
}

int main(int argc, char **argv)
{
    Sluice__V1__LoadModelRequest load = SLUICE__V1__LOAD_MODEL_REQUEST__INIT;
    Sluice__V1__GenerateRequest generate = SLUICE__V1__GENERATE_REQUEST__INIT;
    char id[32];

    if (argc != 7 && argc != 9)
        return 2;
    nng_socket socket = dial(argv);
    if (argc == 9) {
        fetch(socket, argv[7], argv[6], (uint32_t)atoi(argv[8]));
        nng_close(socket);
        return 0;
    }
    load.model = argv[5];
    sluice__v1__load_model_reply__free_unpacked(
        call(socket, "LoadModel", &load.base, &sluice__v1__load_model_reply__descriptor), NULL);
    snprintf(id, sizeof id, "stock-%d", (int)getpid());
    generate.request_id = id;
    generate.model = argv[5];
    generate.prompt = (char *)"a red circle";
    generate.width = generate.height = 64;
    generate.frames = 5;
    Sluice__V1__GenerateReply *reply =
        call(socket, "Generate", &generate.base, &sluice__v1__generate_reply__descriptor);
    watch(socket, reply->job->job_id);
    fetch(socket, reply->job->job_id, argv[6], CHUNK_BYTES);
    sluice__v1__generate_reply__free_unpacked(reply, NULL);
    nng_close(socket);
    return 0;
}
