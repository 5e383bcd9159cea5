/* jetctl: options, and which command was meant. */
#include <grpc/support/log.h>
#include <stddef.h>
#include <string.h>

#include "daemon/ctl/ctl.h"

#define FIELD(name) offsetof(struct ctl_settings, name)

static const struct option_entry entries[] = {
    {"address", NULL, OPTION_STRING, "127.0.0.1:50051", "HOST:PORT", "where jetd listens", 0, 0,
     NULL, FIELD(address)},
    {"timeout", NULL, OPTION_DOUBLE, "0", "SECONDS", "deadline of the call; 0: none", 0, 1e9, NULL,
     FIELD(timeout)},
    {"json", NULL, OPTION_FLAG, "false", NULL, "one JSON object a line instead of text", 0, 0, NULL,
     FIELD(json)},
    {"tls", NULL, OPTION_FLAG, "false", NULL,
     "TLS with the system's CAs (those of GRPC_DEFAULT_SSL_ROOTS_FILE_PATH, if it is set)", 0, 0,
     NULL, FIELD(tls)},
    {"ca", NULL, OPTION_STRING, "", "FILE",
     "TLS: PEM of the CA that the server's certificate is from", 0, 0, NULL, FIELD(ca)},
    {"cert", NULL, OPTION_STRING, "", "FILE", "PEM of a client certificate", 0, 0, NULL,
     FIELD(cert)},
    {"key", NULL, OPTION_STRING, "", "FILE", "PEM of its key", 0, 0, NULL, FIELD(key)},
    {"server-name", NULL, OPTION_STRING, "", "NAME", "the name in the server's certificate", 0, 0,
     NULL, FIELD(server_name)},
    {"token", NULL, OPTION_STRING, "", "TOKEN",
     "bearer token (better as JETCTL_TOKEN: command lines are public)", 0, 0, NULL, FIELD(token)},
    {"text", NULL, OPTION_STRING, "", "TEXT", "the prompt; also as a bare argument", 0, 0, NULL,
     FIELD(text)},
    {"file", NULL, OPTION_STRING, "", "FILE", "read the text from a file, - for standard input", 0,
     0, NULL, FIELD(file)},
    {"ids", NULL, OPTION_STRING, "", "N,N,...", "token ids instead of text", 0, 0, NULL,
     FIELD(ids)},
    {"special-tokens", NULL, OPTION_FLAG, "false", NULL,
     "control tokens: written in text become ids, ids become text", 0, 0, NULL,
     FIELD(special_tokens)},
    {"chat", NULL, OPTION_FLAG, "false", NULL, "tokenize: the text as a user's message", 0, 0, NULL,
     FIELD(chat)},
    {"system", NULL, OPTION_STRING, "", "TEXT", "chat: the system message", 0, 0, NULL,
     FIELD(system)},
    {"request-id", NULL, OPTION_STRING, "", "ID", "name of the request, for abort", 0, 0, NULL,
     FIELD(request_id)},
    {"max-new-tokens", NULL, OPTION_INT, "0", "N", "0: as many as fit", 0, 2147483647, NULL,
     FIELD(max_new_tokens)},
    {"min-new-tokens", NULL, OPTION_INT, "0", "N", "no stop, by id or string, with the first N", 0,
     2147483647, NULL, FIELD(min_new_tokens)},
    {"temperature", NULL, OPTION_STRING, "", "X", "0: greedy", 0, 0, NULL, FIELD(temperature)},
    {"top-p", NULL, OPTION_STRING, "", "X", "nucleus sampling", 0, 0, NULL, FIELD(top_p)},
    {"top-k", NULL, OPTION_STRING, "", "N", "0: off", 0, 0, NULL, FIELD(top_k)},
    {"min-p", NULL, OPTION_STRING, "", "X", "least share of the best token's probability", 0, 0,
     NULL, FIELD(min_p)},
    {"repetition-penalty", NULL, OPTION_STRING, "", "X", "1: none", 0, 0, NULL,
     FIELD(repetition_penalty)},
    {"presence-penalty", NULL, OPTION_STRING, "", "X", "0: none", 0, 0, NULL,
     FIELD(presence_penalty)},
    {"frequency-penalty", NULL, OPTION_STRING, "", "X", "0: none", 0, 0, NULL,
     FIELD(frequency_penalty)},
    {"seed", NULL, OPTION_STRING, "", "N", "unset: random", 0, 0, NULL, FIELD(seed)},
    {"stop", NULL, OPTION_LIST, "", "TEXT", "end before this text; up to 16 times", 0, 0, NULL,
     FIELD(stop)},
    {"include-stop", NULL, OPTION_FLAG, "false", NULL, "keep the stop text", 0, 0, NULL,
     FIELD(include_stop)},
    {"ignore-eos", NULL, OPTION_FLAG, "false", NULL, "go on after an end of text", 0, 0, NULL,
     FIELD(ignore_eos)},
    {"n", NULL, OPTION_INT, "1", "N", "how many outputs", 1, 128, NULL, FIELD(n)},
    {"priority", NULL, OPTION_INT, "0", "N", "higher runs first", -2147483647, 2147483647, NULL,
     FIELD(priority)},
    {"logprobs", NULL, OPTION_STRING, "", "K",
     "log-probabilities of the token and the K best (with --json)", 0, 0, NULL, FIELD(logprobs)},
    {"echo", NULL, OPTION_FLAG, "false", NULL, "print the prompt first", 0, 0, NULL, FIELD(echo)},
    {"service", NULL, OPTION_STRING, "", "NAME", "health: of one service", 0, 0, NULL,
     FIELD(service)},
    {"drain-timeout", NULL, OPTION_STRING, "", "SECONDS",
     "drain: what live requests may take, jetd's --drain-timeout at most; again: less", 0, 0, NULL,
     FIELD(drain_timeout)},
    {"version", NULL, OPTION_ACTION, "false", NULL, "print the version", 0, 0, NULL,
     FIELD(version)},
    {"help", NULL, OPTION_ACTION, "false", NULL, "print this", 0, 0, NULL, FIELD(help)},
};

const struct option_table ctl_table = {
    .program = "jetctl",
    .environment = "JETCTL",
    .synopsis =
        "jetctl asks a jetd daemon.\n"
        "  jetctl generate [TEXT]     continue a text, streamed to the terminal\n"
        "  jetctl chat [TEXT]         answer a message\n"
        "  jetctl score [TEXT]        log-probability of each token\n"
        "  jetctl tokenize [TEXT]     text to ids\n"
        "  jetctl detokenize IDS      ids to text\n"
        "  jetctl info                model, mesh, limits\n"
        "  jetctl health              exit code 0 when it serves\n"
        "  jetctl load                what is running and waiting\n"
        "  jetctl abort ID[,ID...]    end requests\n"
        "  jetctl drain               refuse new requests, end when the live ones are done\n"
        "Text comes from the argument, --file or standard input.\n"
        "Exit codes: 0 well, 1 the server answered with an error, 2 wrong use, 3 the server "
        "cannot\n"
        "be reached, 4 health: it does not serve.",
    .entries = entries,
    .count = sizeof entries / sizeof entries[0],
    .positional = "text",
};

static const struct {
    const char *name;
    ctl_command *run;
} commands[] = {
    {"generate", ctl_generate},     {"chat", ctl_chat}, {"score", ctl_score},
    {"tokenize", ctl_tokenize},     {"info", ctl_info}, {"health", ctl_health},
    {"detokenize", ctl_detokenize}, {"load", ctl_load}, {"abort", ctl_abort},
    {"drain", ctl_drain},
};

static ctl_command *find(const char *name)
{
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(commands[i].name, name) == 0)
            return commands[i].run;
    return NULL;
}

static void be_quiet(gpr_log_func_args *args)
{
    (void)args;
}

static int run(ctl_command *command, const struct ctl_settings *settings)
{
    struct ctl_client *client = NULL;
    gpr_set_log_function(be_quiet);
    grpc_init();
    int code = ctl_connect(settings, &client);
    if (code == CTL_OK)
        code = command(settings, client);
    ctl_disconnect(client);
    grpc_shutdown();
    if (fflush(stdout) != 0 && code == CTL_OK) {
        perror("jetctl: standard output");
        code = CTL_USAGE;
    }
    return code;
}

/* The first argument is the command; options may follow or stand alone (--help). */
int main(int argc, char **argv)
{
    struct ctl_settings settings = {0};
    struct option_store *store = NULL;
    struct error error = {0};
    ctl_command *command = NULL;
    bool named = argc > 1 && argv[1][0] != '-';
    if (named) {
        command = find(argv[1]);
        if (!command) {
            fprintf(stderr, "jetctl: no command %s; see jetctl --help\n", argv[1]);
            return CTL_USAGE;
        }
        argv[1] = argv[0];
    }
    if (option_load(&ctl_table, argc - named, argv + named, &settings, &store, &error) !=
        STATUS_OK) {
        fprintf(stderr, "jetctl: %s\n", error.text);
        return CTL_USAGE;
    }
    int code = CTL_OK;
    if (settings.help) {
        option_help(&ctl_table, stdout);
    } else if (settings.version) {
        puts("jetctl " JETD_VERSION);
    } else if (!command) {
        fputs("jetctl: which command? see jetctl --help\n", stderr);
        code = CTL_USAGE;
    } else {
        code = run(command, &settings);
    }
    option_free(store);
    return code;
}
