/* Drivers of many virtual machines in one thread: each makes the report available that lies in its ring, waits until it
 * is used, and makes it available again. It costs a few microseconds a report, so that what is measured is the device.
 *
 * Usage: empty_reports FD BYTES AVAIL USED SIZE KICK CALL ... with seven arguments for each machine: its memory and
 * the length of that; where the two rings of its split virtqueue of SIZE entries lie there; two eventfds. EVENT_IDX is
 * negotiated, and the report was used once. Each line of standard input is a number of milliseconds. Answers with the
 * number of reports that were used meanwhile, and with the nanoseconds until the last one was.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { ARGUMENTS = 7, EVENTS = 64 };

struct machine {
	volatile uint16_t *avail;	/* flags, idx, ring[size], used_event */
	volatile uint16_t *used;	/* flags, idx, ring[size] of 8 bytes, avail_event */
	uint16_t size, head, seen;
	int kick, call;
};

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void make_available(struct machine *m)
{
	uint16_t old = m->avail[1], event;
	uint64_t one = 1;

	m->avail[2 + old % m->size] = m->head;
	__sync_synchronize();
	m->avail[1] = old + 1;
	__sync_synchronize();
	event = m->used[2 + 4 * m->size];
	if ((uint16_t)(old - event) == 0 && write(m->kick, &one, sizeof(one)) < 0)
		exit(1);
}

/* Returns how many reports were used, at most one as there is only one. */
static int take_used(struct machine *m)
{
	int count = 0;

	for (;;) {
		while (m->seen != m->used[1]) {
			m->seen++;
			count++;
		}
		m->avail[2 + m->size] = m->seen;	/* call when the next one is used */
		__sync_synchronize();
		if (m->seen == m->used[1])
			return count;
	}
}

static long run(struct machine *machines, int count, int poll, long long end)
{
	struct epoll_event events[EVENTS];
	long reports = 0, outstanding = count;
	uint64_t calls;

	for (int i = 0; i < count; i++)
		make_available(&machines[i]);
	while (outstanding) {
		int ready = epoll_wait(poll, events, EVENTS, 20000);
		int over = now() >= end;

		if (ready <= 0)
			exit(1);
		for (int i = 0; i < ready; i++) {
			struct machine *m = events[i].data.ptr;
			int used;

			if (read(m->call, &calls, sizeof(calls)) < 0)
				continue;
			used = take_used(m);
			reports += used;
			if (used && !over)
				make_available(m);
			else
				outstanding -= used;
		}
	}
	return reports;
}

int main(int argc, char **argv)
{
	int count = (argc - 1) / ARGUMENTS, poll = epoll_create1(0);
	struct machine *machines = calloc(count, sizeof(*machines));
	long long milliseconds;

	for (int i = 0; i < count; i++) {
		char **each = argv + 1 + i * ARGUMENTS;
		struct machine *m = &machines[i];
		struct epoll_event event = { .events = EPOLLIN, .data.ptr = m };
		char *ram = mmap(NULL, atoll(each[1]), PROT_READ | PROT_WRITE, MAP_SHARED, atoi(each[0]), 0);

		if (ram == MAP_FAILED)
			return 1;
		m->avail = (volatile uint16_t *)(ram + atoll(each[2]));
		m->used = (volatile uint16_t *)(ram + atoll(each[3]));
		m->size = atoi(each[4]);
		m->kick = atoi(each[5]);
		m->call = atoi(each[6]);
		m->seen = m->used[1];
		m->head = m->avail[2 + (uint16_t)(m->avail[1] - 1) % m->size];
		take_used(m);
		epoll_ctl(poll, EPOLL_CTL_ADD, m->call, &event);
	}
	while (scanf("%lld", &milliseconds) == 1) {
		long long begin = now();
		long reports = run(machines, count, poll, begin + milliseconds * 1000000);

		printf("%ld %lld\n", reports, now() - begin);
		fflush(stdout);
	}
	return 0;
}
