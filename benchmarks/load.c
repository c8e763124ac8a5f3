/* A load generator: so many requests, so many at a time, each answer checked to its end. Prints one JSON object.
 *
 *   load --port PORT [--path PATH] --concurrency N --requests N [--key KEY] [--model NAME] [--patience S]
 *        [--stream CHUNKS --interval MS] [--running-usage]
 *
 * With --stream every answer must bring chunks 1 to CHUNKS, each once and in order, and [DONE]; without, the whole
 * answer with its finish reason. Streams begin spread over their first eight intervals, so that their chunks do not
 * come in step. No two prompts are the same. The result counts each request once:
 *   ok, refused (another status than 200), dropped (the connection ended), short (ended too early), late (not over
 *   after --patience seconds; then the run ends)
 * and has microseconds: latency_us (of whole requests), first_us (to the first chunk), chunk_us (from the engine's
 * write to here), each with percentiles.
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

#define HEAD_LIMIT 16384
#define READ_SIZE 65536
#define CARRY MARK_LENGTH /* what may be the beginning of a mark is kept for the next read */
#define COUNTER_FORMAT "%08ld"
#define COUNTER_LENGTH 8
#define MAX_SHOWN 2

typedef struct {
    int fd; /* -1: not connected */
    bool busy;
    long started_us;
    char head[HEAD_LIMIT + 1];
    size_t head_bytes;
    bool in_body, chunked, until_close, closes;
    long body_left; /* of a Content-Length */
    Dechunker dechunker;
    int status;
    char carry[CARRY];
    size_t carried;
    long chunks; /* marks seen, in order */
    bool disordered, finished;
} Connection;

typedef struct {
    float *values;
    size_t count, room;
} Samples;

static int port = 0, events_fd, shown;
static long concurrency = 1, total = 1, stream_chunks = 0, interval_ms = 0;
static double patience_s = 120;
static bool running_usage;
static const char *path = "/v1/chat/completions", *key = "none", *model = "tiny", *finish_mark = "\"stop\"";
static struct sockaddr_in gateway;
static Connection *connections;
static char request[8192];
static size_t request_length;
static char *counter; /* where in the request each one's own number stands */
static long issued, over, ok, refused, dropped, shorter, late, all_chunks;
static Samples latency, first, per_chunk;

static void sample(Samples *s, double us) {
    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 4096;
        s->values = allocated(realloc(s->values, s->room * sizeof *s->values));
    }
    s->values[s->count++] = (float)us;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, Samples *s) {
    static const double at[] = {0.5, 0.9, 0.99, 1};
    static const char *const names[] = {"p50", "p90", "p99", "max"};
    qsort(s->values, s->count, sizeof *s->values, by_value);
    printf(", \"%s\": {", name);
    for (int i = 0; i < 4; i++)
        printf("%s\"%s\": %.0f", i ? ", " : "", names[i],
               s->count ? s->values[(size_t)((double)(s->count - 1) * at[i])] : 0.0);
    printf("}");
}

/* --- requests */

static void write_request(void) {
    char stream[160] = "";
    if (stream_chunks)
        snprintf(stream, sizeof stream, ",\"stream\":true,\"stream_options\":{\"include_usage\":true%s}",
                 running_usage ? ",\"continuous_usage_stats\":true" : "");
    char body[2048];
    int length = snprintf(
        body, sizeof body,
        "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"},"
        "{\"role\":\"user\",\"content\":\"Question " COUNTER_FORMAT ": what does a reverse proxy do, and why does a "
        "gateway in front of several inference servers need to know what each of them has in its cache?\"}],"
        "\"max_tokens\":%ld,\"seed\":%ld,\"temperature\":0.7%s}",
        model, 0L, stream_chunks ? stream_chunks : 32, interval_ms, stream);
    request_length = (size_t)snprintf(
        request, sizeof request,
        "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: */*\r\nAuthorization: Bearer %s\r\n"
        "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, port, key, length, body);
    counter = strstr(request, "Question ") + strlen("Question ");
}

static bool connected(Connection *c) {
    if (c->fd >= 0) return true;
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(c->fd, (void *)&gateway, sizeof gateway)) {
        close(c->fd);
        c->fd = -1;
        return false;
    }
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(events_fd, EPOLL_CTL_ADD, c->fd, &e);
    return true;
}

static void disconnect(Connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

static bool sent_whole(Connection *c) {
    return connected(c) && send(c->fd, request, request_length, MSG_NOSIGNAL) == (ssize_t)request_length;
}

static void begin(Connection *c) {
    char digits[24];
    snprintf(digits, sizeof digits, COUNTER_FORMAT, issued % 100000000);
    memcpy(counter, digits, COUNTER_LENGTH);
    issued++;
    c->busy = true;
    c->head_bytes = c->carried = 0;
    c->in_body = c->disordered = c->finished = false;
    c->chunks = 0;
    memset(&c->dechunker, 0, sizeof c->dechunker);
    c->started_us = now_us();
    bool again = c->fd >= 0; /* one that was kept may have been closed meanwhile */
    if (sent_whole(c)) return;
    disconnect(c);
    if (again && sent_whole(c)) return;
    disconnect(c);
    c->busy = false;
    dropped++, over++;
}

static void complain(Connection *c, const char *what) {
    if (shown++ < MAX_SHOWN)
        fprintf(stderr, "load: %s: status %d, %ld chunks, %s its end\n%.600s\n", what, c->status, c->chunks,
                c->finished ? "with" : "without", c->head);
}

static void end(Connection *c) {
    sample(&latency, (double)(now_us() - c->started_us));
    if (c->status != 200) {
        refused++;
        complain(c, "refused");
    } else if (!c->finished || c->disordered || c->chunks != stream_chunks) {
        shorter++;
        complain(c, c->disordered ? "out of order" : "short");
    } else {
        ok++;
    }
    c->busy = false;
    over++;
    if (c->closes) disconnect(c);
}

/* --- answers */

/* Look for marks, and for the end, in what came; what may be half of one waits for the rest. */
static void scan(Connection *c, const char *data, size_t length, long now) {
    char joined[CARRY + READ_SIZE];
    memcpy(joined, c->carry, c->carried);
    memcpy(joined + c->carried, data, length);
    char *at = joined, *stop = joined + c->carried + length, *found;
    if (memmem(joined, (size_t)(stop - joined), finish_mark, 6)) c->finished = true;
    while (stream_chunks && (found = memchr(at, '#', (size_t)(stop - at))) && stop - found >= MARK_LENGTH) {
        if (atol(found + MARK_NUMBER) != c->chunks + 1) c->disordered = true;
        if (!c->chunks++) sample(&first, (double)(now - c->started_us));
        sample(&per_chunk, (double)(now - atol(found + MARK_TIME)));
        all_chunks++;
        at = found + MARK_LENGTH;
    }
    found = stream_chunks ? memchr(at, '#', (size_t)(stop - at)) : NULL;
    if (!found) found = stop - at < 5 ? at : stop - 5; /* the end's own mark may be cut in two */
    c->carried = (size_t)(stop - found);
    memcpy(c->carry, found, c->carried);
}

static void body_came(Connection *c, char *data, size_t length, long now) {
    if (c->chunked) {
        size_t used;
        length = dechunk(&c->dechunker, data, length, &used);
    }
    scan(c, data, length, now);
    c->body_left -= (long)length;
    if (c->chunked ? c->dechunker.state == ENDED : !c->until_close && c->body_left <= 0) end(c);
}

static void head_came(Connection *c) {
    const char *length = header(c->head, "\ncontent-length:");
    c->status = atoi(c->head + strlen("HTTP/1.1 "));
    c->chunked = header_begins(c->head, "\ntransfer-encoding:", "chunked");
    c->closes = header_begins(c->head, "\nconnection:", "close");
    c->until_close = !c->chunked && !length;
    c->body_left = length ? atol(length) : 0;
    c->in_body = true;
}

static void came(Connection *c, char *data, size_t length, long now) {
    if (c->in_body) {
        body_came(c, data, length, now);
        return;
    }
    size_t before = c->head_bytes, room = HEAD_LIMIT - before, taken = length < room ? length : room;
    memcpy(c->head + before, data, taken);
    c->head_bytes += taken;
    c->head[c->head_bytes] = 0;
    size_t head = head_length(c->head, c->head_bytes);
    if (!head) return;
    head_came(c);
    body_came(c, data + (head - before), length - (head - before), now);
}

static void lost(Connection *c) {
    disconnect(c);
    if (!c->busy) return;
    if (c->in_body && c->until_close) {
        end(c);
        return;
    }
    complain(c, "dropped");
    dropped++, over++;
    c->busy = false;
}

static void readable(Connection *c) {
    static char data[READ_SIZE];
    ssize_t got = recv(c->fd, data, sizeof data, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) lost(c);
    else if (c->busy) came(c, data, (size_t)got, now_us());
}

/* --- the run */

/* How many may have begun by now: streams come one by one at first. */
static long allowed(long began_us) {
    if (!stream_chunks || !interval_ms || issued >= concurrency) return total;
    long ramp_us = interval_ms * 8 * 1000;
    long so_far = concurrency * (now_us() - began_us) / ramp_us + 1;
    return so_far < concurrency ? so_far : concurrency;
}

static void run(long began_us) {
    struct epoll_event ready[256];
    while (over < total) {
        if ((double)(now_us() - began_us) > patience_s * 1e6) {
            for (long i = 0; i < concurrency; i++) late += connections[i].busy;
            return;
        }
        for (long i = 0; issued < total && i < concurrency; i++)
            if (!connections[i].busy && issued < allowed(began_us)) begin(&connections[i]);
        bool ramping = stream_chunks && interval_ms && issued < concurrency;
        int count = epoll_wait(events_fd, ready, 256, ramping ? 1 : 50);
        for (int i = 0; i < count; i++) readable(ready[i].data.ptr);
    }
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"port", 1, 0, 'p'}, {"path", 1, 0, 'a'}, {"concurrency", 1, 0, 'c'},
                                            {"requests", 1, 0, 'n'}, {"key", 1, 0, 'k'}, {"model", 1, 0, 'm'},
                                            {"patience", 1, 0, 't'}, {"stream", 1, 0, 's'}, {"interval", 1, 0, 'i'},
                                            {"running-usage", 0, 0, 'u'}, {0}};
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) >= 0) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'a': path = optarg; break;
        case 'c': concurrency = atol(optarg); break;
        case 'n': total = atol(optarg); break;
        case 'k': key = optarg; break;
        case 'm': model = optarg; break;
        case 't': patience_s = atof(optarg); break;
        case 's': stream_chunks = atol(optarg); finish_mark = "[DONE]"; break;
        case 'i': interval_ms = atol(optarg); break;
        case 'u': running_usage = true; break;
        default: return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    gateway = (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    events_fd = epoll_create1(0);
    connections = allocated(calloc((size_t)concurrency, sizeof *connections));
    for (long i = 0; i < concurrency; i++) connections[i].fd = -1;
    write_request();
    long began_us = now_us();
    run(began_us);
    printf("{\"ok\": %ld, \"refused\": %ld, \"dropped\": %ld, \"short\": %ld, \"late\": %ld, \"chunks\": %ld, "
           "\"wall_s\": %.3f", ok, refused, dropped, shorter, late, all_chunks, (double)(now_us() - began_us) / 1e6);
    print_samples("latency_us", &latency);
    print_samples("first_us", &first);
    print_samples("chunk_us", &per_chunk);
    puts("}");
    return 0;
}
