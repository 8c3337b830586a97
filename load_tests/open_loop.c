// An open-loop HTTP/1.1 load generator. When each request is due is laid down beforehand, and its latency counts
// from then, whatever the server does meanwhile: a stall is seen by every request that came due in it.
//
//   open_loop ADDRESS PORT REQUESTS SCHEDULE RECORDS CONNECTIONS TIMEOUT_MS
//
// REQUESTS: frames, each a uint32 length and the raw bytes of a request; the i-th due is number i modulo their count.
// SCHEDULE: int64 ns from the start, ascending, one a request. RECORDS: a `Record` each, in the same order.
// One thread, epoll, keep-alive connections taken in turn. It ends TIMEOUT_MS after the last request at the latest.
// Its last line on stdout is its own account, as JSON. open_loop.py makes the files and reads them.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { UNANSWERED = 0, BROKEN = -1, UNREADABLE = -2 };  // in place of an HTTP status

typedef struct {
    int64_t due, sent, done;  // ns from the start; sent and done 0 where it did not come to that
    int32_t bytes;            // of the body
    int16_t status;
    uint8_t degraded, empty;  // the body lists something in "degraded", nothing in "items"
} Record;

typedef struct { uint32_t size; char bytes[]; } __attribute__((packed)) Request;

typedef enum { DOWN, CONNECTING, IDLE, BUSY } State;
typedef struct {
    int fd;
    State state;
    int queued;  // whether it stands in `turn`, where one that went down may still stand
    long request;
    size_t used, room;
    char *answer;
} Connection;

static struct sockaddr_in server;
static int poll_fd;
static int64_t start, timeout_ns;
static Connection *connections;
static int n_connections, *turn, first_idle, n_idle;  // turn: a ring of the idle ones, who waits longest first
static Request **requests;
static Record *records;
static long n_requests, total, due, sent, finished, broken, late;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "open_loop: %s: %s\n", what, strerror(errno));
    exit(1);
}

static char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    fseek(file, 0, SEEK_END);
    *size = ftell(file);
    rewind(file);
    char *bytes = malloc(*size + 1);
    if (!bytes || fread(bytes, 1, *size, file) != *size) fail(path);
    fclose(file);
    return bytes;
}

static void watch(Connection *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poll_fd, operation, c->fd, &event)) fail("epoll_ctl");
}

static void dial(Connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) fail("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS) {
        close(c->fd);
        return;
    }
    c->state = CONNECTING;
    watch(c, EPOLL_CTL_ADD, EPOLLOUT);
}

static void finish(Connection *c, int status, int64_t t) {
    Record *r = &records[c->request];
    r->status = status;
    r->done = t - start;
    finished++;
}

static void drop(Connection *c, int status, int64_t t) {
    if (c->state == BUSY) finish(c, status, t);
    close(c->fd);
    c->state = DOWN;  // dialled again by `sweep`
    broken++;
}

static void rest(Connection *c) {
    c->state = IDLE;
    c->used = 0;
    if (!c->queued) turn[(first_idle + n_idle++) % n_connections] = c - connections;
    c->queued = 1;
}

static Connection *next_idle(void) {
    while (n_idle) {
        Connection *c = &connections[turn[first_idle]];
        first_idle = (first_idle + 1) % n_connections;
        n_idle--;
        c->queued = 0;
        if (c->state == IDLE) return c;
    }
    return NULL;
}

static void send_due(int64_t t) {
    while (due < total && records[due].due <= t - start) due++;
    while (sent < due) {
        Connection *c = next_idle();
        if (!c) return;
        Request *q = requests[sent % n_requests];
        c->request = sent;
        c->state = BUSY;
        records[sent].sent = now() - start;
        late += records[sent].sent - records[sent].due > 1000000;
        sent++;
        if (send(c->fd, q->bytes, q->size, MSG_NOSIGNAL) != q->size) drop(c, BROKEN, now());
    }
}

static void look_inside(Record *r, const char *body, size_t size) {
    const char *list = memmem(body, size, "\"degraded\":[", 12);
    r->degraded = list && list[12] != ']';
    list = memmem(body, size, "\"items\":[", 9);
    r->empty = list && list[9] == ']';
}

// Whether the answer is whole: its HTTP status, 0 while it is not, UNREADABLE for what is no such answer.
static int answered(Connection *c) {
    char *body = memmem(c->answer, c->used, "\r\n\r\n", 4);
    if (!body) return c->used < 65536 ? 0 : UNREADABLE;
    *body = 0;  // ends the head
    char *length = strcasestr(c->answer, "\r\ncontent-length:");
    *body = '\r';
    if (strncmp(c->answer, "HTTP/1.1 ", 9) || !length) return UNREADABLE;
    size_t head = body + 4 - c->answer, size = strtoul(length + 17, NULL, 10);
    if (c->used < head + size) return 0;
    Record *r = &records[c->request];
    r->bytes = size;
    look_inside(r, body + 4, size);
    return atoi(c->answer + 9);
}

static void receive(Connection *c) {
    if (c->room - c->used < 65536) c->answer = realloc(c->answer, c->room += 131072);
    ssize_t n = recv(c->fd, c->answer + c->used, c->room - c->used - 1, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0 || c->state != BUSY) {  // closed, or spoken to without having asked
        drop(c, BROKEN, now());
        return;
    }
    c->used += n;
    c->answer[c->used] = 0;
    int status = answered(c);
    if (status == UNREADABLE) drop(c, UNREADABLE, now());
    if (status <= 0) return;
    finish(c, status, now());
    rest(c);
}

static void connected(Connection *c) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        drop(c, BROKEN, now());
        return;
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
    rest(c);
}

// Now and then: give up what has waited too long, and dial again what is down.
static void sweep(int64_t t) {
    for (Connection *c = connections; c < connections + n_connections; c++) {
        if (c->state == BUSY && t - start - records[c->request].due > timeout_ns) drop(c, UNANSWERED, t);
        if (c->state == DOWN) dial(c);
    }
    for (; sent < due && t - start - records[sent].due > timeout_ns; sent++, finished++) records[sent].done = t - start;
}

static void wait_until(int64_t t) {
    struct epoll_event events[64];
    int64_t left = t - now();
    struct timespec pause = {0, left < 0 ? 0 : left > 20000000 ? 20000000 : left};
    int n = epoll_pwait2(poll_fd, events, 64, &pause, NULL);
    for (int i = 0; i < n; i++) {
        Connection *c = events[i].data.ptr;
        if (c->state == CONNECTING) connected(c);
        else if (c->state != DOWN) receive(c);
    }
}

static double cpu_s(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void prepare(char **words) {
    size_t size, at;
    server.sin_family = AF_INET;
    server.sin_port = htons(atoi(words[2]));
    if (inet_pton(AF_INET, words[1], &server.sin_addr) != 1) fail("the address is no IPv4 address");
    char *frames = read_file(words[3], &size);
    for (at = 0; at < size; at += sizeof(Request) + requests[n_requests++]->size) {
        if (!(n_requests & (n_requests - 1))) requests = realloc(requests, 2 * (n_requests + 1) * sizeof *requests);
        requests[n_requests] = (Request *)(frames + at);
    }
    int64_t *schedule = (int64_t *)read_file(words[4], &size);
    total = size / sizeof *schedule;
    records = calloc(total + 1, sizeof *records);
    for (long i = 0; i < total; i++) records[i].due = schedule[i];
    n_connections = atoi(words[6]);
    timeout_ns = atoll(words[7]) * 1000000;
    connections = calloc(n_connections, sizeof *connections);
    turn = calloc(n_connections, sizeof *turn);
    poll_fd = epoll_create1(0);
    prctl(PR_SET_TIMERSLACK, 1);
}

int main(int n_words, char **words) {
    if (n_words != 8) return fputs("open_loop: it is started by open_loop.py\n", stderr), 2;
    prepare(words);
    for (int64_t until = now() + timeout_ns; n_idle < n_connections; wait_until(now() + 20000000)) {
        if (now() > until) return fprintf(stderr, "open_loop: %d of %d connections\n", n_idle, n_connections), 1;
        sweep(now());
    }
    double used = cpu_s();
    broken = 0;
    start = now();
    for (int64_t swept = start; finished < total;) {
        int64_t t = now();
        send_due(t);
        if (t - swept > 20000000) sweep(swept = t);
        wait_until(due < total ? start + records[due].due : t + 20000000);
    }
    FILE *out = fopen(words[5], "wb");
    if (!out || fwrite(records, sizeof *records, total, out) != (size_t)total || fclose(out)) fail(words[5]);
    printf("{\"began_ns\": %ld, \"cpu_s\": %.6f, \"wall_s\": %.6f, \"broken\": %ld, \"late\": %ld}\n", (long)start,
           cpu_s() - used, (now() - start) / 1e9, broken, late);
    return 0;
}
