/* What load.c and engine.c share: the clock, and the few words of HTTP/1.1 that two programs of one author need. */
#ifndef HTTP_H
#define HTTP_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* Every chunk carries its number within the stream and when it was sent: "#000042@0000001234567890". */
#define MARK_FORMAT "#%06ld@%016ld"
#define MARK_LENGTH 24
#define MARK_NUMBER 1 /* offsets within the mark */
#define MARK_TIME 8

static inline long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

static inline void *allocated(void *memory) {
    if (!memory) {
        perror("out of memory");
        exit(1);
    }
    return memory;
}

/* The length of a message's head with the empty line that ends it, 0 while that is not there. */
static inline size_t head_length(const char *data, size_t length) {
    const char *end = memmem(data, length, "\r\n\r\n", 4);
    return end ? (size_t)(end - data) + 4 : 0;
}

/* The value of a header (its name in the form "\nname:") within a head that ends with a NUL; NULL without one. */
static inline const char *header(const char *head, const char *name) {
    const char *found = strcasestr(head, name);
    if (!found) return NULL;
    found += strlen(name);
    while (*found == ' ') found++;
    return found;
}

static inline bool header_begins(const char *head, const char *name, const char *value) {
    const char *found = header(head, name);
    return found && !strncasecmp(found, value, strlen(value));
}

/* The body of a chunked message, as it comes in. */
typedef struct {
    enum { SIZE, DATA, DATA_END, TRAILER, ENDED } state;
    size_t left;   /* bytes of the current chunk */
    bool line_has; /* anything but its end; the trailer ends with a line that has not */
} Dechunker;

static inline int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decode in place; returns how many bytes of body `data` then begins with. `used`: how many came in for that. */
static inline size_t dechunk(Dechunker *d, char *data, size_t length, size_t *used) {
    size_t in = 0, out = 0;
    while (in < length && d->state != ENDED) {
        if (d->state == DATA) {
            size_t piece = d->left < length - in ? d->left : length - in;
            memmove(data + out, data + in, piece);
            in += piece, out += piece, d->left -= piece;
            if (!d->left) d->state = DATA_END;
            continue;
        }
        char c = data[in++];
        if (d->state == SIZE) {
            int digit = hex_digit(c);
            if (digit >= 0) d->left = d->left * 16 + (size_t)digit;
            if (c == '\n') d->state = d->left ? DATA : TRAILER, d->line_has = false;
        } else if (d->state == DATA_END) {
            if (c == '\n') d->state = SIZE;
        } else if (c == '\n') {
            if (!d->line_has) d->state = ENDED;
            d->line_has = false;
        } else if (c != '\r') {
            d->line_has = true;
        }
    }
    *used = in;
    return out;
}

#endif
