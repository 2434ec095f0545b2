/* A client of an embedpool in C: vectors are read where a worker wrote them, in shared memory, and never copied.
 *
 *     embed [-i] [-r] [-t MS] ENDPOINT [TEXT ...]
 *
 * Embeds the texts in one request; without texts, each line of standard input in a request of its own, all in one session.
 * Prints each vector's norm and first values; -r: the rows themselves, raw. -i: no segment, vectors through the socket.
 * -t: how long one request may take, 10000 ms by default. A router that dies is waited for, and asked again.
 * docs/protocol.md says why each step is there. For hosts with little-endian floats, as the rows are. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <msgpack.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { PING_AFTER_MS = 1000, GONE_AFTER_MS = 4000, SEGMENT_BYTES = 1 << 20 };

typedef struct {
    const char *endpoint;
    void *context, *socket;
    bool greeting, open; /* hello was said to `router`; it has answered with welcome */
    uint64_t wanted_bytes, router, dim, last_id;
    char fingerprint[513]; /* of the first welcome: vectors of two must not be mixed */
    int lock;              /* the locked descriptor is our sign of life; -1 without a segment */
    size_t segment_bytes;
    const uint8_t *segment;
    int64_t heard_ms, pinged_ms;
} Client;

static _Noreturn void die(const char *what, const char *why) {
    fprintf(stderr, "embed: %s: %s\n", what, why);
    exit(1);
}

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static const msgpack_object *field(const msgpack_object *map, const char *name) {
    for (uint32_t i = 0; map->type == MSGPACK_OBJECT_MAP && i < map->via.map.size; i++) {
        const msgpack_object *key = &map->via.map.ptr[i].key;
        bool is_str = key->type == MSGPACK_OBJECT_STR && key->via.str.size == strlen(name);
        if (is_str && !memcmp(key->via.str.ptr, name, strlen(name))) return &map->via.map.ptr[i].val;
    }
    return NULL;
}

static uint64_t number(const msgpack_object *map, const char *name) { /* 0 where there is none */
    const msgpack_object *found = field(map, name);
    return found && found->type == MSGPACK_OBJECT_POSITIVE_INTEGER ? found->via.u64 : 0;
}

static void string(const msgpack_object *map, const char *name, char *to, size_t size) { /* "" where there is none */
    const msgpack_object *found = field(map, name);
    size_t n = found && found->type == MSGPACK_OBJECT_STR ? found->via.str.size : 0;
    if (n >= size) n = size - 1;
    if (n) memcpy(to, found->via.str.ptr, n);
    to[n] = 0;
}

typedef struct {
    msgpack_packer packer;
    msgpack_sbuffer buffer;
} Message;

static void put(Message *m, const char *s) { msgpack_pack_str_with_body(&m->packer, s, strlen(s)); }
static void put_number(Message *m, const char *name, uint64_t n) { put(m, name), msgpack_pack_uint64(&m->packer, n); }

static void begin(Message *m, const char *kind, size_t fields) {
    msgpack_sbuffer_init(&m->buffer);
    msgpack_packer_init(&m->packer, &m->buffer, msgpack_sbuffer_write);
    msgpack_pack_map(&m->packer, fields + 1);
    put(m, "kind"), put(m, kind);
}

/* What cannot be sent is dropped: where there is no connection, the next one begins with `who`, and all is asked again. */
static void transmit(Client *c, Message *m) {
    zmq_send(c->socket, m->buffer.data, m->buffer.size, ZMQ_DONTWAIT);
    msgpack_sbuffer_destroy(&m->buffer);
}

static void connect_anew(Client *c) {
    int one = 1, linger_ms = 100;
    if (c->socket) zmq_close(c->socket);
    c->socket = zmq_socket(c->context, ZMQ_DEALER);
    zmq_setsockopt(c->socket, ZMQ_PROBE_ROUTER, &one, sizeof one); /* so that a router which does not know us says `who` */
    zmq_setsockopt(c->socket, ZMQ_IMMEDIATE, &one, sizeof one);
    zmq_setsockopt(c->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    if (zmq_connect(c->socket, c->endpoint)) die(c->endpoint, zmq_strerror(errno));
    c->greeting = c->open = false, c->heard_ms = now_ms();
}

static void unmap(Client *c) {
    if (c->lock >= 0) munmap((void *)c->segment, c->segment_bytes), close(c->lock);
    c->lock = -1;
}

static void map(Client *c, const char *path, size_t size) {
    c->lock = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (c->lock < 0 || flock(c->lock, LOCK_SH)) die(path, strerror(errno));
    c->segment = mmap(NULL, size, PROT_READ, MAP_SHARED, c->lock, 0);
    if (c->segment == MAP_FAILED) die(path, strerror(errno));
    c->segment_bytes = size;
}

static void say_hello(Client *c, uint64_t router) {
    Message m;
    if (c->greeting && router == c->router) return; /* once per router: two questions may cross our answer */
    c->greeting = true, c->open = false, c->router = router;
    begin(&m, "hello", 3), put_number(&m, "version", 1), put_number(&m, "segment_bytes", c->wanted_bytes);
    put(&m, "client"), put(&m, "examples/c"), transmit(c, &m);
}

static void welcomed(Client *c, const msgpack_object *message) {
    char path[4097], fingerprint[sizeof c->fingerprint];
    const msgpack_object *models = field(message, "models");
    if (!models || models->type != MSGPACK_OBJECT_ARRAY || !models->via.array.size) die("welcome", "names no model");
    string(&models->via.array.ptr[0], "fingerprint", fingerprint, sizeof fingerprint);
    if (*c->fingerprint && strcmp(c->fingerprint, fingerprint)) die("the pool has another model now", fingerprint);
    strcpy(c->fingerprint, fingerprint);
    c->dim = number(&models->via.array.ptr[0], "dim");
    unmap(c);
    string(message, "segment", path, sizeof path);
    if (*path) map(c, path, number(message, "segment_bytes"));
    c->greeting = false, c->open = true;
}

static void ask(Client *c, char **texts, size_t rows, bool in_segment, int64_t budget_ms) {
    Message m;
    begin(&m, "embed", in_segment ? 4 : 3), put_number(&m, "id", ++c->last_id), put_number(&m, "budget_ms", budget_ms);
    if (in_segment) put_number(&m, "offset", 0); /* the only request: its room may begin where the last one's did */
    put(&m, "texts"), msgpack_pack_array(&m.packer, rows);
    for (size_t i = 0; i < rows; i++) put(&m, texts[i]);
    transmit(c, &m);
}

static void keep_alive(Client *c) {
    Message m;
    int64_t now = now_ms();
    if (now - c->heard_ms >= GONE_AFTER_MS) connect_anew(c);
    else if (now - c->heard_ms >= PING_AFTER_MS && now - c->pinged_ms >= PING_AFTER_MS)
        begin(&m, "ping", 1), put_number(&m, "id", 0), transmit(c, &m), c->pinged_ms = now;
}

static bool refused(Client *c, const msgpack_object *message, int64_t left_ms) { /* whether to ask again, after a pause */
    char code[64], why[4097];
    const msgpack_object *id = field(message, "id"), *again = field(message, "retryable");
    if (id && id->type != MSGPACK_OBJECT_NIL && number(message, "id") != c->last_id) return false; /* an older request's */
    int64_t pause_ms = (int64_t)number(message, "retry_after_ms");
    string(message, "code", code, sizeof code), string(message, "message", why, sizeof why);
    if (!again || again->type != MSGPACK_OBJECT_BOOLEAN || !again->via.boolean || pause_ms >= left_ms) die(code, why);
    usleep(pause_ms * 1000), c->heard_ms = now_ms();
    if (!c->open) c->greeting = false, say_hello(c, c->router); /* it was hello that was refused */
    return true;
}

/* Takes in one message. `asked`: our request is out; cleared where it must be sent (again). True for its vectors. */
static bool received(Client *c, zmq_msg_t *payload, size_t rows, bool *asked, int64_t left_ms) {
    char kind[16];
    zmq_msg_t head;
    msgpack_unpacked parsed;
    zmq_msg_init(&head), msgpack_unpacked_init(&parsed);
    if (zmq_msg_recv(&head, c->socket, 0) < 0) die("receive", zmq_strerror(errno));
    while (zmq_msg_more(&head) && zmq_msg_recv(payload, c->socket, 0) >= 0 && zmq_msg_more(payload)) {}
    c->heard_ms = now_ms();
    if (msgpack_unpack_next(&parsed, zmq_msg_data(&head), zmq_msg_size(&head), NULL) != MSGPACK_UNPACK_SUCCESS)
        die(c->endpoint, "does not speak the protocol");
    const msgpack_object *message = &parsed.data;
    string(message, "kind", kind, sizeof kind);
    if (!strcmp(kind, "who")) say_hello(c, number(message, "router")), *asked = false;
    if (!strcmp(kind, "welcome")) welcomed(c, message), *asked = false;
    if (!strcmp(kind, "refused") && refused(c, message, left_ms)) *asked = false;
    bool done = *asked && !strcmp(kind, "vectors") && number(message, "id") == c->last_id;
    if (done && (number(message, "rows") != rows || number(message, "dim") != c->dim)) die(kind, "not what was asked for");
    msgpack_unpacked_destroy(&parsed), zmq_msg_close(&head);
    return done;
}

/* The rows, valid until the next request: in the segment, or in `payload` where they came inline. */
static const uint8_t *embed(Client *c, char **texts, size_t rows, int64_t deadline_ms, zmq_msg_t *payload) {
    bool asked = false, in_segment = false;
    c->heard_ms = now_ms(); /* silence counts from when there is something to answer */
    for (int64_t left; (left = deadline_ms - now_ms()) > 0;) {
        if (c->open && !asked) {
            in_segment = c->lock >= 0 && rows <= c->segment_bytes / sizeof(float) / c->dim;
            ask(c, texts, rows, in_segment, left), asked = true;
        }
        zmq_pollitem_t item = {c->socket, 0, ZMQ_POLLIN, 0};
        if (zmq_poll(&item, 1, left < PING_AFTER_MS ? left : PING_AFTER_MS) <= 0)
            keep_alive(c);
        else if (received(c, payload, rows, &asked, left)) {
            if (in_segment) return c->segment;
            if (zmq_msg_size(payload) != rows * c->dim * sizeof(float)) die("vectors", "not so many bytes");
            return zmq_msg_data(payload);
        }
    }
    die(c->endpoint, "no answer in time");
}

static void show(Client *c, char **texts, size_t count, int64_t limit_ms, bool raw) {
    zmq_msg_t payload;
    zmq_msg_init(&payload);
    const uint8_t *rows = embed(c, texts, count, now_ms() + limit_ms, &payload);
    if (raw) fwrite(rows, sizeof(float), count * c->dim, stdout);
    for (size_t row = 0; row < count && !raw; row++, rows += c->dim * sizeof(float)) {
        float value, first[4] = {0};
        double square = 0;
        for (size_t i = 0; i < c->dim; i++, square += (double)value * value) {
            memcpy(&value, rows + i * sizeof value, sizeof value); /* a load: an inline frame may lie anywhere */
            if (i < 4) first[i] = value;
        }
        printf("norm %.6f  %.6f %.6f %.6f %.6f …\n", sqrt(square), first[0], first[1], first[2], first[3]);
    }
    fflush(stdout), zmq_msg_close(&payload);
}

int main(int argc, char **argv) {
    Client c = {.context = zmq_ctx_new(), .wanted_bytes = SEGMENT_BYTES, .lock = -1};
    bool raw = false;
    int64_t limit_ms = 10000;
    for (int option; (option = getopt(argc, argv, "+irt:")) != -1;)
        if (option == 'i') c.wanted_bytes = 0;
        else if (option == 'r') raw = true;
        else if (option == 't') limit_ms = atoll(optarg);
    if (optind >= argc) die("usage", "embed [-i] [-r] [-t MS] ENDPOINT [TEXT ...]");
    c.endpoint = argv[optind++];
    connect_anew(&c);
    if (optind < argc) show(&c, argv + optind, argc - optind, limit_ms, raw);
    char *line = NULL;
    for (size_t room = 0; optind == argc && getline(&line, &room, stdin) > 0;) {
        line[strcspn(line, "\n")] = 0;
        show(&c, &line, 1, limit_ms, raw);
    }
    Message bye;
    begin(&bye, "bye", 0), transmit(&c, &bye);
    free(line), unmap(&c), zmq_close(c.socket), zmq_ctx_term(c.context);
    return 0;
}
