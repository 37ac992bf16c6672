/* Resolves a name and prints its addresses, one a line, as a static program without glibc does it.
 * resolve NAME [4|6]; exits 0, or 1 with the resolver's reason on standard error. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_family = AF_UNSPEC}, *list, *one;
    char text[INET6_ADDRSTRLEN];

    if (argc < 2)
        return 2;
    if (argc > 2)
        hints.ai_family = strcmp(argv[2], "6") == 0 ? AF_INET6 : AF_INET;
    int error = getaddrinfo(argv[1], NULL, &hints, &list);
    if (error != 0) {
        fprintf(stderr, "%s\n", gai_strerror(error));
        return 1;
    }
    for (one = list; one != NULL; one = one->ai_next) {
        const void *address = one->ai_family == AF_INET6 ? (const void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr
                                                         : (const void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr;
        puts(inet_ntop(one->ai_family, address, text, sizeof text));
    }
    return 0;
}
