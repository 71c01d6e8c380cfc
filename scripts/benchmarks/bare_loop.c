/* The reference: discards ranges of a file one after another and does nothing else.
 *
 * Usage: bare_loop FD. Each line of standard input is "OFFSET LENGTH COUNT STRIDE": punch COUNT neighbouring holes of
 * LENGTH bytes from OFFSET on, every STRIDE-th one first, then the ones after these, and so on. Answers with the
 * nanoseconds that took, on a line of its own.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	long long offset, length, count, stride, begin;
	int fd;

	if (argc != 2)
		return 2;
	fd = atoi(argv[1]);
	while (scanf("%lld %lld %lld %lld", &offset, &length, &count, &stride) == 4) {
		begin = now();
		for (long long first = 0; first < stride; first++)
			for (long long i = first; i < count; i += stride)
				if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset + i * length, length))
					return 1;
		printf("%lld\n", now() - begin);
		fflush(stdout);
	}
	return 0;
}
