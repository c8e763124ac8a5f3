/* A scripted engine that answers chats as vLLM does, at a price that does not show beside a gateway's.
 *
 *   engine --port PORT [--ports N] [--key KEY] [--plain] [--certificate PEM --private-key PEM]
 *
 * It listens on N ports from PORT on (as many replicas, to whoever routes), on 127.0.0.1, in one thread, and prints
 * "ready". A request without the key gets 401, but for /health. Of a request's JSON it reads, by searching for them:
 *   max_tokens               how many chunks a stream has
 *   seed                     milliseconds between two of them; it is the one field that every router lets through
 *   continuous_usage_stats   running counts in every chunk; with --plain the ask is ignored, as older engines do
 * Whole answers are always the same, and come at once; so do the tokens that a router has a prompt rendered into. Each
 * chunk of a stream is written on its own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http.h"
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

#define REQUEST_LIMIT (256 * 1024)
#define WHEEL_MS 4096 /* longer than any time between two chunks */
#define PROMPT_TOKENS 25
#define STREAM_ID "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000," \
                  "\"model\":\"tiny\",\"choices\":["
#define WHOLE_ANSWER "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1700000000," \
                     "\"model\":\"tiny\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":" \
                     "\"The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy dog. " \
                     "The quick brown fox.\"},\"logprobs\":null,\"finish_reason\":\"stop\"}]," \
                     "\"usage\":{\"prompt_tokens\":25,\"total_tokens\":57,\"completion_tokens\":32}}"
#define RENDERED "{\"request_id\":\"0123456789abcdef\",\"token_ids\":[151644,8948,198,2610,525,264,10950,17847,13," \
                 "151645,198,151644,872,198,14582,220,15,25,1128,1558,264,9931,13291,653,30,151645,198]}"
#define NOT_FOUND "{\"detail\":\"Not Found\"}"
#define MODELS "{\"object\":\"list\",\"data\":[{\"id\":\"tiny\",\"object\":\"model\",\"owned_by\":\"vllm\"}]}"
#define STREAM_HEAD "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n" \
                    "transfer-encoding: chunked\r\n\r\n"

typedef struct Connection {
    bool listening;
    int fd;
    void *tls; /* SSL *, NULL without TLS */
    char *in;
    size_t in_length;
    char *out; /* what the socket has not taken yet */
    size_t out_length, out_capacity;
    bool streaming, running_usage;
    long chunks, sent, interval_ms; /* of the stream */
    int slot;                       /* in the wheel, -1 when nothing is due */
    struct Connection *next, *previous;
} Connection;

static int events_fd;
static Connection *wheel[WHEEL_MS]; /* by the millisecond at which the next chunk is due */
static long wheel_ms, waiting;
static const char *key;
static bool plain;

/* --- bytes, with or without TLS: -1 and EAGAIN when it would block */

#ifdef WITH_TLS
static SSL_CTX *tls_context;

static void use_certificate(const char *certificate, const char *private_key) {
    tls_context = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_mode(tls_context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (SSL_CTX_use_certificate_chain_file(tls_context, certificate) != 1 ||
        SSL_CTX_use_PrivateKey_file(tls_context, private_key, SSL_FILETYPE_PEM) != 1) {
        fprintf(stderr, "engine: cannot use %s with %s\n", certificate, private_key);
        exit(1);
    }
}

static void begin_tls(Connection *c) {
    if (!tls_context) return;
    c->tls = allocated(SSL_new(tls_context));
    SSL_set_fd(c->tls, c->fd);
    SSL_set_accept_state(c->tls);
}

static ssize_t tls_result(Connection *c, int result) {
    if (result > 0) return result;
    int why = SSL_get_error(c->tls, result);
    errno = why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? EAGAIN : EPIPE;
    return why == SSL_ERROR_ZERO_RETURN ? 0 : -1;
}

static ssize_t receive(Connection *c, char *to, size_t room) {
    if (!c->tls) return recv(c->fd, to, room, 0);
    ERR_clear_error(); /* what another connection left there would be taken for this one's */
    return tls_result(c, SSL_read(c->tls, to, (int)room));
}

static ssize_t transmit(Connection *c, const char *data, size_t length) {
    if (!c->tls) return send(c->fd, data, length, MSG_NOSIGNAL);
    ERR_clear_error();
    return tls_result(c, SSL_write(c->tls, data, (int)length));
}

static void end_tls(Connection *c) { SSL_free(c->tls); }
#else
static void use_certificate(const char *certificate, const char *private_key) {
    fprintf(stderr, "engine: built without OpenSSL: no TLS with %s and %s\n", certificate, private_key);
    exit(1);
}
static void begin_tls(Connection *c) { (void)c; }
static ssize_t receive(Connection *c, char *to, size_t room) { return recv(c->fd, to, room, 0); }
static ssize_t transmit(Connection *c, const char *data, size_t length) {
    return send(c->fd, data, length, MSG_NOSIGNAL);
}
static void end_tls(Connection *c) { (void)c; }
#endif

/* --- the wheel: who has a chunk due, and when */

static void due_in(Connection *c, long ms) {
    c->slot = (int)((wheel_ms + ms) % WHEEL_MS);
    c->previous = NULL;
    c->next = wheel[c->slot];
    if (c->next) c->next->previous = c;
    wheel[c->slot] = c;
    waiting++;
}

static void not_due(Connection *c) {
    if (c->slot < 0) return;
    if (c->previous) c->previous->next = c->next;
    else wheel[c->slot] = c->next;
    if (c->next) c->next->previous = c->previous;
    c->slot = -1;
    waiting--;
}

/* --- connections */

static void watch(Connection *c, int operation, unsigned events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(events_fd, operation, c->fd, &e);
}

static void opened(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    Connection *c = allocated(calloc(1, sizeof *c));
    c->fd = fd;
    c->slot = -1;
    c->in = allocated(malloc(REQUEST_LIMIT + 1));
    begin_tls(c);
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void closed(Connection *c) {
    not_due(c);
    end_tls(c);
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

/* Whether the connection can go on. What the socket does not take is kept for when it does. */
static bool put(Connection *c, const char *data, size_t length) {
    if (!c->out_length) {
        ssize_t taken = transmit(c, data, length);
        if (taken < 0 && errno != EAGAIN) return false;
        if (taken > 0) data += taken, length -= (size_t)taken;
        if (!length) return true;
        watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    }
    if (c->out_length + length > c->out_capacity) {
        c->out_capacity = 2 * (c->out_length + length);
        c->out = allocated(realloc(c->out, c->out_capacity));
    }
    memcpy(c->out + c->out_length, data, length);
    c->out_length += length;
    return true;
}

static bool flush(Connection *c) {
    if (!c->out_length) return true;
    ssize_t taken = transmit(c, c->out, c->out_length);
    if (taken < 0) return errno == EAGAIN;
    c->out_length -= (size_t)taken;
    memmove(c->out, c->out + taken, c->out_length);
    if (!c->out_length) watch(c, EPOLL_CTL_MOD, EPOLLIN);
    return true;
}

/* --- answers */

static bool answer(Connection *c, const char *status, const char *json) {
    char text[2048];
    int length = snprintf(text, sizeof text,
                          "HTTP/1.1 %s\r\nserver: uvicorn\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n"
                          "\r\n%s", status, strlen(json), json);
    return put(c, text, (size_t)length);
}

static bool put_event(Connection *c, const char *event, int length, const char *after) {
    char text[1024];
    int whole = snprintf(text, sizeof text, "%x\r\n%s\r\n%s", (unsigned)length, event, after);
    return put(c, text, (size_t)whole);
}

static int write_usage(char *to, size_t room, const char *before, long completion) {
    return snprintf(to, room, "%s\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%ld,\"completion_tokens\":%ld}",
                    before, PROMPT_TOKENS, PROMPT_TOKENS + completion, completion);
}

/* The next chunk of a stream; with the last one also its finish reason, its usage and [DONE]. */
static bool put_chunk(Connection *c) {
    char event[512], usage[128] = "";
    c->sent++;
    if (c->running_usage) write_usage(usage, sizeof usage, ",", c->sent);
    int length = snprintf(event, sizeof event,
                          "data: " STREAM_ID "{\"index\":0,\"delta\":{\"content\":\"" MARK_FORMAT
                          " tok\"},\"logprobs\":null,\"finish_reason\":null}]%s}\n\n", c->sent, now_us(), usage);
    if (!put_event(c, event, length, "")) return false;
    if (c->sent < c->chunks) return true;
    length = snprintf(event, sizeof event,
                      "data: " STREAM_ID "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]%s}"
                      "\n\n", usage);
    if (!put_event(c, event, length, "")) return false;
    write_usage(usage, sizeof usage, "", c->sent);
    length = snprintf(event, sizeof event, "data: " STREAM_ID "],%s}\n\n", usage);
    c->streaming = false;
    return put_event(c, event, length, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
}

static bool begin_stream(Connection *c) {
    c->sent = 0;
    c->streaming = true;
    static const char role[] = "data: " STREAM_ID "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                               "\"logprobs\":null,\"finish_reason\":null}]}\n\n";
    if (!put(c, STREAM_HEAD, strlen(STREAM_HEAD)) || !put_event(c, role, sizeof role - 1, "")) return false;
    if (!put_chunk(c)) return false;
    if (c->interval_ms && c->streaming) {
        due_in(c, c->interval_ms);
        return true;
    }
    while (c->streaming)
        if (!put_chunk(c)) return false;
    return true;
}

static long number(const char *json, const char *name, long otherwise) {
    const char *found = strstr(json, name);
    if (!found) return otherwise;
    found += strlen(name);
    while (*found == ' ' || *found == ':') found++;
    return atol(found);
}

static bool is_true(const char *json, const char *name) {
    const char *found = strstr(json, name);
    if (!found) return false;
    found += strlen(name);
    while (*found == ' ' || *found == ':') found++;
    return *found == 't';
}

static bool has_key(const char *head) {
    if (!key) return true;
    const char *sent = header(head, "\nauthorization:");
    size_t length = strlen(key);
    return sent && !strncasecmp(sent, "bearer ", 7) && !strncmp(sent + 7, key, length) && sent[7 + length] == '\r';
}

static bool handle(Connection *c, const char *head, const char *body) {
    if (!strncmp(head, "GET /health ", 12)) return answer(c, "200 OK", "{}");
    if (!has_key(head)) return answer(c, "401 Unauthorized", "{\"error\":\"Unauthorized\"}");
    if (strncmp(head, "POST ", 5)) return answer(c, "200 OK", MODELS);
    if (!strncmp(head, "POST /v1/chat/completions/render ", 33)) return answer(c, "200 OK", RENDERED);
    if (strncmp(head, "POST /v1/chat/completions ", 26)) return answer(c, "404 Not Found", NOT_FOUND);
    if (!is_true(body, "\"stream\"")) return answer(c, "200 OK", WHOLE_ANSWER);
    c->chunks = number(body, "\"max_tokens\"", 64);
    c->interval_ms = number(body, "\"seed\"", 0) % WHEEL_MS;
    c->running_usage = !plain && is_true(body, "\"continuous_usage_stats\"");
    return begin_stream(c);
}

/* Answer every request that is there whole; the next one waits while a stream goes on. */
static bool handle_all(Connection *c) {
    while (c->in_length && !c->streaming) {
        c->in[c->in_length] = 0;
        size_t head = head_length(c->in, c->in_length);
        if (!head) return c->in_length < REQUEST_LIMIT;
        c->in[head - 2] = 0; /* the last header keeps its \r\n */
        size_t whole, body_length = 0;
        if (header_begins(c->in, "\ntransfer-encoding:", "chunked")) {
            char *end = memmem(c->in + head, c->in_length - head, "0\r\n\r\n", 5);
            if (end) body_length = (size_t)(end - c->in) - head;
            whole = end ? head + body_length + 5 : REQUEST_LIMIT + 1;
        } else {
            const char *length = header(c->in, "\ncontent-length:");
            body_length = length ? strtoul(length, NULL, 10) : 0;
            whole = head + body_length;
        }
        if (c->in_length < whole) {
            c->in[head - 2] = '\r';
            return c->in_length < REQUEST_LIMIT;
        }
        char after = c->in[head + body_length];
        c->in[head + body_length] = 0;
        bool goes_on = handle(c, c->in, c->in + head);
        c->in[head + body_length] = after;
        if (!goes_on) return false;
        c->in_length -= whole;
        memmove(c->in, c->in + whole, c->in_length);
    }
    return true;
}

static bool read_requests(Connection *c) {
    for (;;) { /* TLS may hold more than the socket shows */
        ssize_t got = receive(c, c->in + c->in_length, REQUEST_LIMIT - c->in_length);
        if (got < 0 && errno == EAGAIN) return true;
        if (got <= 0) return false;
        c->in_length += (size_t)got;
        if (!handle_all(c)) return false;
        if (c->in_length == REQUEST_LIMIT) return false;
        if (!c->tls) return true;
    }
}

static void send_what_is_due(void) {
    for (long now_ms = now_us() / 1000; wheel_ms < now_ms;) {
        wheel_ms++;
        Connection *due = wheel[wheel_ms % WHEEL_MS], *next;
        for (; due; due = next) {
            next = due->next;
            not_due(due);
            bool goes_on = put_chunk(due);
            if (goes_on && due->streaming) due_in(due, due->interval_ms);
            else if (!goes_on || !handle_all(due)) closed(due);
        }
    }
}

static void listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (void *)&at, sizeof at) || listen(fd, 4096)) {
        fprintf(stderr, "engine: port %d: %s\n", port, strerror(errno));
        exit(1);
    }
    Connection *c = allocated(calloc(1, sizeof *c));
    c->fd = fd;
    c->listening = true;
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void serve(void) {
    struct epoll_event ready[512];
    for (;;) {
        int count = epoll_wait(events_fd, ready, 512, waiting ? 1 : 1000);
        if (!waiting) wheel_ms = now_us() / 1000; /* nobody was due while it slept */
        for (int i = 0; i < count; i++) {
            Connection *c = ready[i].data.ptr;
            if (c->listening) {
                for (int fd; (fd = accept4(c->fd, NULL, NULL, SOCK_NONBLOCK)) >= 0;) opened(fd);
                continue;
            }
            bool goes_on = !(ready[i].events & EPOLLOUT) || flush(c);
            if (goes_on && ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) goes_on = read_requests(c);
            if (!goes_on) closed(c);
        }
        send_what_is_due();
    }
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"port", 1, 0, 'p'}, {"ports", 1, 0, 'n'}, {"key", 1, 0, 'k'},
                                            {"plain", 0, 0, 'l'}, {"certificate", 1, 0, 'c'},
                                            {"private-key", 1, 0, 's'}, {0}};
    const char *certificate = NULL, *private_key = NULL;
    int port = 9000, ports = 1, option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) >= 0) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'n': ports = atoi(optarg); break;
        case 'k': key = optarg; break;
        case 'l': plain = true; break;
        case 'c': certificate = optarg; break;
        case 's': private_key = optarg; break;
        default: return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    if (certificate && private_key) use_certificate(certificate, private_key);
    events_fd = epoll_create1(0);
    wheel_ms = now_us() / 1000;
    for (int n = 0; n < ports; n++) listen_on(port + n);
    puts("ready");
    fflush(stdout);
    serve();
}
