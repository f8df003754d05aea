// tokenizer_shim.cc - the sentencepiece library behind tokenizer.h.
//
// The only C++ of the tree: nothing of it crosses the header, and every
// exception ends here as a status.
extern "C" {
#include "base/status.h" // a C header that knows nothing of C++
}
#include "engine/text/tokenizer.h"
#include "engine/text/tokenizer_check.h"

#include <sentencepiece_processor.h>

#include <cerrno>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

struct sl_tokenizer {
    sentencepiece::SentencePieceProcessor processor;
};

namespace
{

constexpr size_t FILE_BYTES_MAX = size_t{ 64 } << 20;

struct file_closer {
    void operator()(std::FILE *file) const
    {
        std::fclose(file);
    }
};

sl_status read_file(std::string *out, const char *path, sl_error *err)
{
    std::unique_ptr<std::FILE, file_closer> file(std::fopen(path, "rbe"));
    char chunk[65536];

    if (!file)
        return sl_fail_errno(err, "could not open tokenizer \"%s\"", path);
    for (;;) {
        const size_t got = std::fread(chunk, 1, sizeof chunk, file.get());
        out->append(chunk, got);
        if (out->size() > FILE_BYTES_MAX)
            return sl_fail(err, SL_ERR_DATA, "tokenizer \"%s\" has more than %zu bytes", path,
                           FILE_BYTES_MAX);
        if (got < sizeof chunk)
            break;
    }
    if (std::ferror(file.get()))
        return sl_fail_errno(err, "could not read tokenizer \"%s\"", path);
    return SL_OK;
}

sl_status load(sl_tokenizer *tokenizer, const char *path, sl_error *err)
{
    std::string bytes;
    sl_status status = read_file(&bytes, path, err);

    if (status != SL_OK)
        return status;
    status = sl_tokenizer_check(reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size(), err);
    if (status != SL_OK)
        return sl_error_prefix(err, "tokenizer \"%s\"", path);
    const auto loaded = tokenizer->processor.LoadFromSerializedProto(bytes);
    if (!loaded.ok())
        return sl_fail(err, SL_ERR_DATA, "tokenizer \"%s\": %s", path, loaded.error_message());
    if (tokenizer->processor.eos_id() < 0)
        return sl_fail(err, SL_ERR_DATA, "tokenizer \"%s\" has no </s> piece", path);
    if (tokenizer->processor.unk_id() < 0)
        return sl_fail(err, SL_ERR_DATA, "tokenizer \"%s\" has no <unk> piece", path);
    return SL_OK;
}

sl_status encode(const sl_tokenizer *tokenizer, const char *text, size_t length,
                 std::vector<int> *ids, sl_error *err)
{
    const auto encoded = tokenizer->processor.Encode({ text, length }, ids);

    if (!encoded.ok())
        return sl_fail(err, SL_ERR_INTERNAL, "could not tokenize %zu bytes: %s", length,
                       encoded.error_message());
    return SL_OK;
}

// Every way out of the library, as a status.
template <typename Work>
sl_status guarded(const char *what, const char *name, sl_error *err, Work work)
{
    try {
        return work();
    } catch (const std::bad_alloc &) {
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory %s \"%s\"", what, name);
    } catch (const std::exception &e) {
        return sl_fail(err, SL_ERR_DATA, "%s \"%s\": %s", what, name, e.what());
    } catch (...) {
        return sl_fail(err, SL_ERR_INTERNAL, "%s \"%s\": unknown exception", what, name);
    }
}

} // namespace

sl_status sl_tokenizer_open(sl_tokenizer **out, const char *path, sl_error *err)
{
    return guarded("opening tokenizer", path, err, [&] {
        std::unique_ptr<sl_tokenizer> tokenizer(new sl_tokenizer);
        const sl_status status = load(tokenizer.get(), path, err);

        if (status == SL_OK)
            *out = tokenizer.release();
        return status;
    });
}

void sl_tokenizer_close(sl_tokenizer *tokenizer)
{
    delete tokenizer;
}

int sl_tokenizer_vocab_size(const sl_tokenizer *tokenizer)
{
    return tokenizer->processor.GetPieceSize();
}

int sl_tokenizer_eos_id(const sl_tokenizer *tokenizer)
{
    return tokenizer->processor.eos_id();
}

sl_status sl_tokenizer_encode(const sl_tokenizer *tokenizer, const char *text, size_t length,
                              int32_t *ids, int max_ids, int *count, sl_error *err)
{
    if (max_ids < 1)
        return sl_fail(err, SL_ERR_INVALID, "room for %d token ids, expected 1 or more", max_ids);
    return guarded("tokenizing", "a prompt", err, [&] {
        std::vector<int> found;
        const sl_status status = encode(tokenizer, text, length, &found, err);

        if (status != SL_OK)
            return status;
        if (found.size() > static_cast<size_t>(max_ids) - 1)
            found.resize(static_cast<size_t>(max_ids) - 1);
        found.push_back(tokenizer->processor.eos_id());
        for (size_t i = 0; i < found.size(); i++)
            ids[i] = found[i];
        *count = static_cast<int>(found.size());
        return SL_OK;
    });
}

sl_status sl_tokenizer_encode_raw(const sl_tokenizer *tokenizer, const char *text, size_t length,
                                  int32_t *ids, int max_ids, int *count, sl_error *err)
{
    return guarded("tokenizing", "a text", err, [&] {
        std::vector<int> found;
        const sl_status status = encode(tokenizer, text, length, &found, err);

        if (status != SL_OK)
            return status;
        if (max_ids < 0 || found.size() > static_cast<size_t>(max_ids))
            return sl_fail(err, SL_ERR_TOO_LARGE, "%zu token ids, room for %d", found.size(),
                           max_ids);
        for (size_t i = 0; i < found.size(); i++)
            ids[i] = found[i];
        *count = static_cast<int>(found.size());
        return SL_OK;
    });
}
