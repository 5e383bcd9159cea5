/* The address and who may connect to it. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/base/file.h"
#include "daemon/rpc_private.h"

enum { PEM_MAX = 1 << 20 };

static bool is_unix(const char *host)
{
    return strncmp(host, "unix:", 5) == 0;
}

/* A name that begins with "127." is not an address. */
static bool is_loopback(const char *host)
{
    struct in_addr address;
    if (inet_pton(AF_INET, host, &address) == 1)
        return ntohl(address.s_addr) >> 24 == 127;
    return strcmp(host, "localhost") == 0 || strcmp(host, "::1") == 0 || is_unix(host);
}

/* gRPC takes any text as PEM and only fails to bind later, without a reason: so look here. */
static enum status read_pem(const char *option, const char *path, const char *kind, char **text,
                            struct error *error)
{
    char *bytes;
    size_t length;
    struct error cause = {0};
    if (file_read(path, PEM_MAX, &bytes, &length, &cause) != STATUS_OK)
        return error_set(error, STATUS_CONFIG, "%s: %s", option, cause.text);
    const char *begin = strstr(bytes, "-----BEGIN ");
    const char *end = begin ? strstr(begin, "-----END ") : NULL;
    const char *name = begin ? strstr(begin, kind) : NULL;
    if (!end || !name || name > end) {
        free(bytes);
        return error_set(error, STATUS_CONFIG, "%s: %s: no PEM block of a %s", option, path, kind);
    }
    *text = bytes;
    return STATUS_OK;
}

static enum status load_credentials(const struct rpc_options *options,
                                    grpc_server_credentials **credentials, struct error *error)
{
    char *key = NULL, *cert = NULL, *ca = NULL;
    enum status status = STATUS_OK;
    *credentials = NULL;
    if (!options->tls_cert != !options->tls_key)
        return error_set(error, STATUS_CONFIG, "TLS: certificate and key must be given together");
    if (options->tls_client_ca && !options->tls_cert)
        return error_set(error, STATUS_CONFIG, "TLS: a client CA needs a certificate and key");
    if (!options->tls_cert) {
        *credentials = grpc_insecure_server_credentials_create();
        return STATUS_OK;
    }
    status = read_pem("TLS certificate", options->tls_cert, "CERTIFICATE", &cert, error);
    if (status == STATUS_OK)
        status = read_pem("TLS key", options->tls_key, "PRIVATE KEY", &key, error);
    if (status == STATUS_OK && options->tls_client_ca)
        status = read_pem("TLS client CA", options->tls_client_ca, "CERTIFICATE", &ca, error);
    if (status == STATUS_OK) {
        grpc_ssl_pem_key_cert_pair pair = {.private_key = key, .cert_chain = cert};
        *credentials = grpc_ssl_server_credentials_create_ex(
            ca, &pair, 1,
            ca ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
               : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
            NULL);
        if (!*credentials)
            status = error_set(error, STATUS_CONFIG, "TLS: %s and %s were refused",
                               options->tls_cert, options->tls_key);
    }
    free(key);
    free(cert);
    free(ca);
    return status;
}

/* What bind() itself says about the address; gRPC only says that it failed. 0: nothing wrong. */
static int probe_address(const char *host, int port)
{
    char service[16];
    snprintf(service, sizeof service, "%d", port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list = NULL;
    if (getaddrinfo(host, service, &hints, &list) != 0)
        return EADDRNOTAVAIL;
    int failure = 0;
    int one = 1;
    int fd = socket(list->ai_family, list->ai_socktype | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, list->ai_addr, list->ai_addrlen) != 0 || listen(fd, 1) != 0)
            failure = errno;
        close(fd);
    }
    freeaddrinfo(list);
    return failure;
}

/* Whether the path of "unix:path" or "unix:///path" is free, which bind() cannot say: gRPC removes
 * a socket that is there, also one that another daemon listens on. 0: nobody does. */
static int probe_socket(const char *host)
{
    const char *path = host + strlen("unix:");
    if (strncmp(path, "//", 2) == 0)
        path += 2;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return errno;
    int failure = connect(fd, (struct sockaddr *)&address, sizeof address) == 0 ? 0 : errno;
    close(fd);
    if (failure == ECONNREFUSED ||
        failure == ENOENT) /* left by a daemon that was killed, or none */
        return 0;
    return failure == 0 || failure == EAGAIN ? EADDRINUSE : failure;
}

static enum status bind_failed(const struct rpc_options *options, const char *address,
                               struct error *error)
{
    int failure = is_unix(options->host) ? 0 : probe_address(options->host, options->port);
    if (failure)
        return error_set(error, STATUS_IO, "cannot bind %s: %s", address, strerror(failure));
    if (options->tls_cert)
        return error_set(
            error, STATUS_CONFIG, "TLS: %s and %s are no certificate and its own private key%s%s",
            options->tls_cert, options->tls_key, options->tls_client_ca ? ", or no CA is in " : "",
            options->tls_client_ca ? options->tls_client_ca : "");
    return error_set(error, STATUS_IO, "cannot bind %s", address);
}

enum status rpc_bind(const struct rpc_options *options, grpc_server *server, int *port,
                     struct error *error)
{
    const char *host = options->host;
    if (!is_loopback(host) && !options->tls_cert && !options->token_count && !options->insecure)
        return error_set(error, STATUS_CONFIG,
                         "host %s is not loopback: give a TLS certificate and key or a token file, "
                         "or allow it with --insecure",
                         host);
    char address[300];
    bool plain = is_unix(host);
    const char *form = plain ? "%s" : strchr(host, ':') && host[0] != '[' ? "[%s]:%d" : "%s:%d";
    int length = plain ? snprintf(address, sizeof address, "%s", host)
                 : form[0] == '['
                     ? snprintf(address, sizeof address, "[%s]:%d", host, options->port)
                     : snprintf(address, sizeof address, "%s:%d", host, options->port);
    if (length < 0 || (size_t)length >= sizeof address || options->port < 0 ||
        options->port > 65535)
        return error_set(error, STATUS_CONFIG, "host %.64s port %d: no such address", host,
                         options->port);
    int failure = plain ? probe_socket(host) : 0;
    if (failure)
        return error_set(error, STATUS_IO, "cannot bind %s: %s", address, strerror(failure));
    grpc_server_credentials *credentials;
    enum status status = load_credentials(options, &credentials, error);
    if (status != STATUS_OK)
        return status;
    *port = grpc_server_add_http2_port(server, address, credentials);
    grpc_server_credentials_release(credentials);
    return *port > 0 ? STATUS_OK : bind_failed(options, address, error);
}
