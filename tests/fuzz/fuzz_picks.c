/* The bytes are a file of choices; what is accepted must print and read again as the same text. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/picks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct picks picks;
    static char text[PICKS_TEXT_MAX];
    struct error error = {0};
    if (size > PICKS_TEXT_MAX)
        return 0;
    enum status status = picks_parse((const char *)data, size, &picks, &error);
    if (status != STATUS_OK && (error.status != status || error.text[0] == '\0'))
        abort();
    if (status == STATUS_OK && (picks_print(&picks, text) != size || memcmp(text, data, size) != 0))
        abort();
    return 0;
}
