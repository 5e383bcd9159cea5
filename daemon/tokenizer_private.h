/* The tokenizer's parts. Private to the tokenizer_*.c files, chat.c, stream.c and their tests.
 *
 * encode: added tokens cut the raw text (tokenizer_added.c) -> NFC of each piece between them
 * (tokenizer_nfc.c) -> words by the split expression (tokenizer_split.c) -> merges
 * (tokenizer_bpe.c). */
#ifndef JETD_DAEMON_TOKENIZER_PRIVATE_H
#define JETD_DAEMON_TOKENIZER_PRIVATE_H

#include "daemon/text.h"
#include "daemon/tokenizer.h"

enum {
    TOKENIZER_FILE_MAX = 256 << 20, /* bytes of tokenizer.json */
    TOKENIZER_IDS_MAX = 1 << 22,
    TOKENIZER_TOKEN_MAX = 4096, /* bytes of one token's text */
    TOKENIZER_ADDED_MAX = 4096,
    TOKENIZER_PATTERN_MAX = 4096, /* bytes of the split expression */
    TOKENIZER_NFC_SHRINK = 4,     /* NFC never makes a text shorter by more: 7 bytes can become 2 */
};

/* ---- tokenizer_tables.c ---- */

struct token {
    uint32_t offset; /* into tokenizer.bytes */
    uint16_t length;
    bool present;
    bool special; /* dropped by skip_special */
    bool whole;   /* merging the bytes of this token gives this token alone */
};

struct merge {
    uint64_t pair; /* left id << 32 | right id; MERGE_NONE: empty slot */
    uint32_t rank; /* lower merges first */
    int32_t id;    /* what the pair becomes */
};

#define MERGE_NONE UINT64_MAX

struct added {
    const char *text; /* into tokenizer.added_text */
    size_t length;
    int32_t id;
};

struct tokenizer {
    struct text bytes;    /* raw bytes of all tokens */
    struct token *tokens; /* [size] */
    int size;
    size_t longest;        /* bytes of the longest token, decoded */
    size_t longest_added;  /* bytes of the longest added token, as it is written in a text */
    int32_t byte_ids[256]; /* the token of each single byte */
    struct merge *merges;  /* [merge_mask + 1], open addressing */
    size_t merge_mask;
    int32_t *words; /* [word_mask + 1] ids by bytes, open addressing, -1: empty */
    size_t word_mask;
    struct added *added; /* [added_count] by first byte, then longest first */
    int added_count;
    int added_first[257]; /* added tokens that start with byte b: [first[b], first[b + 1]) */
    struct text added_text;
    bool nfc;
    void *split; /* pcre2_code */
};

/* Empty tables of at least `count` entries; false: out of memory. */
bool merges_create(struct tokenizer *tokenizer, size_t count);
bool words_create(struct tokenizer *tokenizer, size_t count);
/* False: the pair was there before (the first rank stays). */
bool merges_add(struct tokenizer *tokenizer, int32_t left, int32_t right, uint32_t rank,
                int32_t id);
const struct merge *merges_find(const struct tokenizer *tokenizer, int32_t left, int32_t right);
void words_add(struct tokenizer *tokenizer, int32_t id);
/* The token with exactly these bytes, -1: none. Added tokens are not in this table. */
int32_t words_find(const struct tokenizer *tokenizer, const char *bytes, size_t length);

/* ---- tokenizer_bytes.c: the printable alphabet of byte-level vocabularies ---- */

/* The raw bytes of a token's text into `bytes` [length]; text outside the alphabet stays as it
 * is, as HF decodes it. */
size_t bytes_from_text(const char *text, size_t length, char *bytes, bool *outside);

/* ---- tokenizer_added.c ---- */

/* Sorts added tokens for added_find. */
void added_order(struct tokenizer *tokenizer);
/* The first and there longest added token in `text`; NULL: none. */
const struct added *added_find(const struct tokenizer *tokenizer, const char *text, size_t length,
                               size_t *offset);

/* The id of the added token with this text, -1: none. */
int32_t added_id(const struct tokenizer *tokenizer, const char *text, size_t length);

/* ---- tokenizer_nfc.c ---- */

/* Appends the NFC of valid UTF-8. Linear but for sorting runs of combining marks. */
enum status nfc_append(const char *from, size_t length, struct text *text, struct error *error);

/* ---- tokenizer_split.c ---- */

#define SPLIT_GPT2                                                                                 \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

enum status split_compile(const char *pattern, size_t length, void **split, struct error *error);
void split_free(void *split);

struct splitter; /* one walk over one text; not shared */
struct splitter *splitter_create(const void *split);
void splitter_destroy(struct splitter *splitter);
void splitter_start(struct splitter *splitter, const char *text, size_t length);
/* The next word [*start, *end); *end == *start: the text is at its end. */
enum status splitter_next(struct splitter *splitter, size_t *start, size_t *end,
                          struct error *error);

/* ---- tokenizer_bpe.c ---- */

struct ids {
    int32_t *values;
    size_t count, room;
};

bool ids_append(struct ids *ids, int32_t id); /* false: out of memory */

struct bpe; /* working memory of merges; not shared */
struct bpe *bpe_create(const struct tokenizer *tokenizer);
void bpe_destroy(struct bpe *bpe);
/* Appends the ids of one word; false: out of memory. O(n log n). */
bool bpe_word(struct bpe *bpe, const char *word, size_t length, struct ids *ids);
/* Heap operations so far: a measure of work that does not depend on the machine. */
uint64_t bpe_work(const struct bpe *bpe);

/* ---- tokenizer_encode.c ---- */

struct encoder; /* working memory of one encoding */
struct encoder *encoder_create(const struct tokenizer *tokenizer);
void encoder_destroy(struct encoder *encoder);
enum status encoder_text(struct encoder *encoder, const char *text, size_t length, bool specials,
                         struct error *error);
enum status encoder_id(struct encoder *encoder, int32_t id, struct error *error);
enum status encoder_finish(struct encoder *encoder, struct arena *arena, int32_t **ids,
                           size_t *count, struct error *error);
uint64_t encoder_work(const struct encoder *encoder);

/* ---- chat.c ---- */

/* A rendered chat: text in which some ranges are control tokens and all else is plain. */
struct chat_mark {
    size_t offset, length;
};

struct chat_text {
    struct text text;
    struct chat_mark *marks; /* in order of offset */
    size_t mark_count, mark_room;
};

void chat_text_free(struct chat_text *chat);
enum status chat_render(const struct chat_message *messages, size_t count, const char *tools,
                        size_t tools_length, bool generation_prompt, struct chat_text *chat,
                        struct error *error);

#endif
