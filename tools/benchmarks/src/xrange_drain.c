/* The limit of reading a stream: XRANGE COUNT 1000 until the reply is empty, by a client that uses only the last id.
 * Prints the number of entries and of seconds. */
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s SOCKET KEY\n", argv[0]);
        return 2;
    }
    redisContext *redis = redisConnectUnix(argv[1]);
    if (redis == NULL || redis->err) {
        fprintf(stderr, "%s: cannot connect\n", argv[1]);
        return 1;
    }
    char from[64] = "-";
    long entries = 0;
    double started_at = now();
    for (;;) {
        redisReply *reply = redisCommand(redis, "XRANGE %s %s + COUNT 1000", argv[2], from);
        if (reply == NULL || reply->type != REDIS_REPLY_ARRAY) {
            fprintf(stderr, "the reply is no list of entries\n");
            return 1;
        }
        if (reply->elements == 0) {
            freeReplyObject(reply);
            break;
        }
        entries += reply->elements;
        redisReply *last = reply->element[reply->elements - 1];
        snprintf(from, sizeof from, "(%s", last->element[0]->str);
        freeReplyObject(reply);
    }
    printf("%ld %.6f\n", entries, now() - started_at);
    redisFree(redis);
    return 0;
}
