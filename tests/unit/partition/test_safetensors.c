/* One safetensors file: a corpus of hostile ones, written here, each with its refusal. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "partition/safetensors.h"

static char path[64];

static int make_path(void **state)
{
    (void)state;
    strcpy(path, "/tmp/jetd-safetensors-XXXXXX");
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

static void write_file(const void *first, size_t first_size, const void *second, size_t second_size,
                       size_t zeros)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(first, 1, first_size, file), first_size);
    assert_int_equal(fwrite(second, 1, second_size, file), second_size);
    for (size_t i = 0; i < zeros; i++)
        fputc(0, file);
    assert_int_equal(fclose(file), 0);
}

/* A file with this header and `data` bytes of zeros behind it. */
static void write_header(const char *header, size_t length, size_t data)
{
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++)
        prefix[i] = (unsigned char)((uint64_t)length >> 8 * i);
    write_file(prefix, sizeof prefix, header, length, data);
}

static void expect(enum status wanted, const char *named, const char *what)
{
    struct safetensors file;
    struct error error = {0};
    enum status status = safetensors_open(path, 0, &file, &error);
    if (status == STATUS_OK)
        safetensors_close(&file);
    if (status != wanted || error.status != wanted || strstr(error.text, named) == NULL ||
        strstr(error.text, path) == NULL)
        fail_msg("%.200s: %s: %s (wanted: %s)", what, status_name(status), error.text, named);
}

struct hostile {
    const char *header;
    size_t data;
    const char *named;
};

#define T(dtype, shape, begin, end)                                                                \
    "{\"dtype\": \"" dtype "\", \"shape\": " shape ", \"data_offsets\": [" begin ", " end "]}"

static const struct hostile hostiles[] = {
    /* sizes whose product wraps: to 4, to 0, and only with the dtype */
    {"{\"w\":" T("F32", "[4194305, 4194305, 211106198978564]", "0", "16") "}", 16,
     "w.shape: the product of the sizes overflows"},
    {"{\"w\":" T("F32", "[4294967296, 4294967296]", "0", "0") "}", 0, "w.shape: the product"},
    {"{\"w\":" T("F32", "[4611686018427387904]", "0", "0") "}", 0, "w.shape: the product"},
    {"{\"w\":" T("F32", "[9223372036854775808]", "0", "4") "}", 4, "offset"},
    {"{\"w\":" T("F32", "[-1]", "0", "4") "}", 4, "w.shape[0] is -1"},
    {"{\"w\":" T("F32", "[1.0]", "0", "4") "}", 4, "w.shape[0] is a fraction"},
    {"{\"w\":" T("F32", "[1e2]", "0", "400") "}", 400, "w.shape[0] is a fraction"},
    {"{\"w\":" T("F32", "[true]", "0", "4") "}", 4, "w.shape[0] is a boolean"},
    {"{\"w\":" T("F32", "1", "0", "4") "}", 4, "w.shape"},
    {"{\"w\":" T("F32", "[1,1,1,1,1,1,1,1,1]", "0", "4") "}", 4, "w.shape has 9 dimensions"},
    /* offsets */
    {"{\"w\":" T("F32", "[2]", "0", "9223372036854775807") "}", 8,
     "w: data_offsets [0, 9223372036854775807] reach beyond the 8 bytes"},
    {"{\"w\":" T("F32", "[2]", "18446744073709551608", "0") "}", 8, "offset"},
    {"{\"w\":" T("F32", "[2]", "8", "0") "}", 8, "w: data_offsets [8, 0] run backwards"},
    {"{\"w\":" T("F32", "[2]", "-8", "0") "}", 8, "w.data_offsets[0] is -8"},
    {"{\"w\":" T("F32", "[2]", "0", "8") "}", 7, "truncated: w: data_offsets [0, 8]"},
    {"{\"w\":" T("F32", "[2]", "0", "8") "}", 9, "1 trailing bytes at offset"},
    {"{\"w\":" T("F32", "[2]", "0", "4") "}", 4, "hold 4 bytes, shape and dtype need 8"},
    {"{\"w\":" T("BF16", "[2]", "0", "8") "}", 8, "hold 8 bytes, shape and dtype need 4"},
    {"{\"w\":{\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4, 4]}}", 4,
     "w.data_offsets"},
    {"{\"w\":{\"dtype\": \"F32\", \"shape\": [1], \"offsets\": [0, 4]}}", 4, "w.data_offsets"},
    /* between tensors */
    {"{\"a\":" T("F32", "[2]", "0", "8") ", \"b\":" T("F32", "[2]", "4", "12") "}", 12,
     "tensor b at offset"},
    {"{\"a\":" T("F32", "[2]", "0", "8") ", \"b\":" T("F32", "[2]", "0", "8") "}", 8, "overlaps"},
    {"{\"a\":" T("F32", "[1]", "0", "4") ", \"b\":" T("F32", "[1]", "8", "12") "}", 12,
     "hole of 4 bytes at offset"},
    {"{\"a\":" T("F32", "[1]", "4", "8") "}", 8, "before tensor a"},
    {"{\"a\":" T("F32", "[1]", "0", "4") ", \"a\":" T("F32", "[1]", "4", "8") "}", 8, "duplicate"},
    {"{\"a\":{\"dtype\": \"F32\", \"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}}",
     4, "duplicate"},
    /* types */
    {"{\"w\":" T("I64", "[1]", "0", "8") "}", 8, "w.dtype is \"I64\""},
    {"{\"w\":" T("f32", "[1]", "0", "4") "}", 4, "w.dtype is \"f32\""},
    {"{\"w\":{\"shape\": [1], \"data_offsets\": [0, 4]}}", 4, "w.dtype is missing"},
    {"{\"w\":{\"dtype\": 4, \"shape\": [1], \"data_offsets\": [0, 4]}}", 4,
     "w.dtype is an integer"},
    {"{\"w\":{\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4], \"x\": 1}}", 4,
     "w has members besides"},
    {"{\"w\": [1]}", 4, "w is an array"},
    {"{\"__metadata__\": {\"format\": 1}}", 0, "__metadata__.format is an integer"},
    {"{\"__metadata__\": \"pt\"}", 0, "__metadata__ is a string"},
    /* not JSON, or not the JSON meant */
    {"[1]", 0, "no JSON object at offset 8"},
    {" {}", 0, "no JSON object at offset 8"},
    {"{", 0, "line 1"},
    {"{\"w\": \"\xff\xfe\"}", 0, "offset"},
    {"{\"w\": {\"shape\": [[[[[[1]]]]]]}}", 0, "nested deeper than 3"},
    {"{} {}", 0, "line 1"},
};

static void test_hostile(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof hostiles / sizeof *hostiles; i++) {
        write_header(hostiles[i].header, strlen(hostiles[i].header), hostiles[i].data);
        expect(STATUS_CORRUPT, hostiles[i].named, hostiles[i].header);
    }
}

static void test_prefix(void **state)
{
    (void)state;
    write_file("", 0, "", 0, 0);
    expect(STATUS_CORRUPT, "truncated: 0 bytes", "empty");
    write_file("\2\0\0\0\0\0\0", 7, "", 0, 0);
    expect(STATUS_CORRUPT, "truncated: 7 bytes", "seven bytes");
    write_file("\0\0\0\0\0\0\0\0", 8, "", 0, 0);
    expect(STATUS_CORRUPT, "no JSON object", "no header");
    write_file("\377\377\377\377\377\377\377\377", 8, "{}", 2, 0);
    expect(STATUS_CORRUPT, "18446744073709551615", "header of 2^64 - 1");
    write_file("\1\0\0\1\0\0\0\0", 8, "{}", 2, 0);
    expect(STATUS_CORRUPT, "16777217, over the 16777216", "header over 16 MiB");
    write_file("\3\0\0\0\0\0\0\0", 8, "{}", 2, 0);
    expect(STATUS_CORRUPT, "truncated: header of 3 bytes", "header beyond the end");
    static const char pointer[] = "version https://git-lfs.github.com/spec/v1\noid sha256:00\n";
    write_file(pointer, sizeof pointer - 1, "", 0, 0);
    expect(STATUS_CORRUPT, "git-LFS pointer", "lfs");
    assert_int_equal(unlink(path), 0);
    expect(STATUS_IO, "No such file", "absent");
    assert_int_equal(mkfifo(path, 0600), 0);
    expect(STATUS_IO, "not a regular file", "pipe"); /* and does not hang */
    assert_int_equal(unlink(path), 0);
    write_file("", 0, "", 0, 0);
}

/* Headers within 16 MiB that would be costly to build. */
static void test_large(void **state)
{
    (void)state;
    size_t room = 12 << 20, used = 0;
    char *text = malloc(room);
    assert_non_null(text);
    used += (size_t)sprintf(text, "{");
    for (int i = 0; i <= SAFETENSORS_TENSORS_MAX + 1; i++)
        used += (size_t)sprintf(text + used,
                                "%s\"%d\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}",
                                i ? "," : "", i);
    used += (size_t)sprintf(text + used, "}");
    assert_true(used < room);
    write_header(text, used, 0);
    expect(STATUS_CORRUPT, "65538 tensors, over the 65536 allowed", "many tensors");
    used = (size_t)sprintf(text, "{\"w\":[");
    while (used < room - 16)
        used += (size_t)sprintf(text + used, "[],");
    used += (size_t)sprintf(text + used, "[]]}");
    write_header(text, used, 0);
    expect(STATUS_CORRUPT, "more than 1048576 values", "many values");
    memset(text, '[', room);
    text[0] = '{';
    write_header(text, room, 0);
    expect(STATUS_CORRUPT, "nested deeper", "twelve million brackets");
    free(text);
}

/* Every cut of a good file is refused, and so is every added byte. */
static void test_cuts(void **state)
{
    (void)state;
    static const char header[] =
        "{\"__metadata__\": {\"format\": \"pt\"}, "
        "\"b\": " T("BF16", "[2, 3]", "8",
                    "20") ", "
                          "\"e\": " T("F32", "[0]", "8",
                                      "8") ", "
                                           "\"a\": " T("F32", "[]", "0",
                                                       "4") ", "
                                                            "\"c\": " T("F16", "[2]", "4",
                                                                        "8") "}   ";
    size_t size = 8 + sizeof header - 1 + 20;
    write_header(header, sizeof header - 1, 20);
    struct safetensors file;
    struct error error = {0};
    assert_int_equal(safetensors_open(path, 3, &file, &error), STATUS_OK);
    assert_int_equal(file.count, 4);
    assert_string_equal(file.entry[0].name, "a");
    assert_int_equal(file.entry[0].dims, 0);
    assert_int_equal(file.entry[0].offset, size - 20);
    assert_string_equal(file.entry[3].name, "b");
    assert_int_equal(file.entry[3].shape[1], 3);
    assert_int_equal(file.entry[3].bytes, 12);
    assert_int_equal(file.entry[3].offset, size - 12);
    assert_int_equal(file.entry[3].shard, 3);
    safetensors_close(&file);
    for (size_t cut = size; cut-- > 0;) {
        assert_int_equal(truncate(path, (off_t)cut), 0);
        error_clear(&error);
        assert_int_equal(safetensors_open(path, 0, &file, &error), STATUS_CORRUPT);
    }
}

/* Whatever bit of the header flips, the file is refused or still lies within its bounds. */
static void test_flips(void **state)
{
    (void)state;
    char header[] =
        "{\"a\": " T("F32", "[3, 2]", "0", "24") ", \"b\": " T("BF16", "[4]", "24", "32") "}";
    size_t length = sizeof header - 1;
    int refused = 0;
    for (size_t bit = 0; bit < length * 8; bit++) {
        header[bit / 8] ^= (char)(1 << bit % 8);
        write_header(header, length, 32);
        header[bit / 8] ^= (char)(1 << bit % 8);
        struct safetensors file;
        struct error error = {0};
        if (safetensors_open(path, 0, &file, &error) != STATUS_OK) {
            assert_int_equal(error.status, STATUS_CORRUPT);
            refused++;
            continue;
        }
        for (size_t i = 0; i < file.count; i++)
            assert_true(file.entry[i].offset + file.entry[i].bytes <= 8 + length + 32);
        safetensors_close(&file);
    }
    assert_true(refused > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostile), cmocka_unit_test(test_prefix), cmocka_unit_test(test_large),
        cmocka_unit_test(test_cuts),    cmocka_unit_test(test_flips),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
