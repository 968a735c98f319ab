#!/bin/sh
# Runs a command for each connection, whose standard input and output are the connection, with socat and hvsock's
# text protocol (docs/text.md).
#
#   listen.sh FROM SERVICE COMMAND      such as: listen.sh any 'HV Socket Demo' 'tr a-z A-Z'
text=${HVSOCK_DIR:-/run/hvsock}/text
[ -z "$HVSOCK_ENDPOINT" ] || text=$(dirname "$HVSOCK_ENDPOINT")/text
workers=4
case $HVSOCK_STEP in
'')
    # socat makes the socket the standard streams of this script; the caller's output is 4.
    export HVSOCK_STEP=listen HVSOCK_REQUEST="LISTEN $1 $2" HVSOCK_COMMAND="$3"
    exec socat "UNIX-CONNECT:$text" "EXEC:'$0',nofork" 4>&1
    ;;
listen)
    printf '%s\n' "$HVSOCK_REQUEST"
    IFS= read -r answer || answer='ERR reset the broker ended the connection'
    case $answer in
    OK\ *token=*) token=${answer##*token=} ;;
    *) echo "listen.sh: ${answer#ERR }" >&2; exit 1 ;;
    esac
    export HVSOCK_STEP=accept HVSOCK_REQUEST="ACCEPT ${token%% *}"
    for worker in $(seq $workers); do
        # One connection after another, until there is no such listener. Only this script holds its socket.
        while socat "UNIX-CONNECT:$text" "EXEC:'$0',nofork"; do :; done </dev/null >&4 \
            5>&- 6>&- 7>&- 8>&- 9>&- &
    done
    echo listening >&4
    while IFS= read -r line; do echo "listen.sh: ${line#ERR }" >&2; done
    exit 1
    ;;
accept)
    printf '%s\n' "$HVSOCK_REQUEST"
    IFS= read -r answer
    case $answer in
    OK | OK\ *) ;;
    *) exit 1 ;;
    esac
    # The status of the command is none of the next connection's business.
    unset HVSOCK_STEP HVSOCK_REQUEST
    sh -c "$HVSOCK_COMMAND" || echo "listen.sh: the command failed: $HVSOCK_COMMAND" >&2
    exit 0
    ;;
esac
