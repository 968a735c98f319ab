#!/bin/sh
# Runs a command for each connection, whose standard input and output are the connection, with socat and hvsock's
# text protocol (docs/text.md).
#
#   listen.sh FROM SERVICE COMMAND      such as: listen.sh any 'HV Socket Demo' 'tr a-z A-Z'
text=${HVSOCK_TEXT:-/run/hvsock/text}
workers=4
case $HVSOCK_STEP in
'')
    export HVSOCK_STEP=listen HVSOCK_REQUEST="LISTEN $1 $2" HVSOCK_COMMAND="$3"
    exec 4>&1
    exec socat "UNIX-CONNECT:$text" "EXEC:$0,pipes"
    ;;
listen)
    # The listener lives as long as this connection.
    printf '%s\n' "$HVSOCK_REQUEST"
    IFS= read -r answer
    case $answer in
    OK*token=*) token=${answer##*token=} ;;
    *) echo "listen.sh: ${answer#ERR }" >&2; exit 1 ;;
    esac
    export HVSOCK_STEP=accept HVSOCK_REQUEST="ACCEPT ${token%% *}"
    echo listening >&4
    for worker in $(seq $workers); do
        # Without the listener's socket, whose end ends everything.
        while socat -t 3600 "UNIX-CONNECT:$text" "EXEC:$0,pipes"; do :; done <&- >&- &
    done
    while IFS= read -r line; do echo "listen.sh: $line" >&2; done
    ;;
accept)
    printf '%s\n' "$HVSOCK_REQUEST"
    IFS= read -r answer
    case $answer in
    OK*) unset HVSOCK_STEP HVSOCK_REQUEST; exec sh -c "$HVSOCK_COMMAND" ;;
    *) exit 1 ;;
    esac
    ;;
esac
