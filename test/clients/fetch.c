//go:build ignore

// fetch NAME: looks a name up as the C library does it, and asks each of its
// addresses for "/" by HTTP. Prints a line for each, and fails if one failed.
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static int fetch(const struct addrinfo *a)
{
	static const char request[] = "GET / HTTP/1.0\r\n\r\n";
	struct timeval patience = { .tv_sec = 3 };
	char head[64] = "";
	int fd = socket(a->ai_family, SOCK_STREAM, 0);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (connect(fd, a->ai_addr, a->ai_addrlen) < 0 || write(fd, request, sizeof(request) - 1) < 0 ||
	    read(fd, head, sizeof(head) - 1) < 0)
		perror("fetch");
	close(fd);
	return strncmp(head + strlen("HTTP/1.x "), "200", 3) == 0;
}

int main(int argc, char **argv)
{
	struct addrinfo *all, *a, hints = { .ai_socktype = SOCK_STREAM };
	char text[64];
	int failed = 0;
	int err = getaddrinfo(argc > 1 ? argv[1] : "", "80", &hints, &all);

	if (err) {
		fprintf(stderr, "%s\n", gai_strerror(err));
		return 2;
	}
	for (a = all; a; a = a->ai_next) {
		getnameinfo(a->ai_addr, a->ai_addrlen, text, sizeof(text), NULL, 0, NI_NUMERICHOST);
		if (fetch(a)) {
			printf("%s\n", text);
		} else {
			fprintf(stderr, "%s: failed\n", text);
			failed = 1;
		}
	}
	return failed;
}
