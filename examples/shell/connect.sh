#!/bin/sh
# Connects standard input and output to a service, with socat and hvsock's text protocol (docs/text.md).
#
#   connect.sh PARTITION SERVICE      such as: connect.sh parent HV Socket Demo
text=${HVSOCK_DIR:-/run/hvsock}/text
[ -z "$HVSOCK_ENDPOINT" ] || text=$(dirname "$HVSOCK_ENDPOINT")/text
if [ -z "$HVSOCK_REQUEST" ]; then
    # socat makes the socket the standard streams of this script; the caller's are 3 and 4.
    export HVSOCK_REQUEST="CONNECT $*"
    exec socat "UNIX-CONNECT:$text" "EXEC:'$0',nofork" 3<&0 4>&1
fi
printf '%s\n' "$HVSOCK_REQUEST"
IFS= read -r answer || answer='ERR reset the broker ended the connection'
[ ${#answer} -lt 4096 ] || answer='ERR invalid_answer the answer is longer than a line of the text protocol'
case $answer in
OK | OK\ *) ;;
*) echo "connect.sh: ${answer#ERR }" >&2; exit 1 ;;
esac
# The end of standard input is a half-close.
exec socat -t 31536000 'FD:3!!FD:4' FD:0,shut-down
