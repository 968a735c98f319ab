#!/bin/sh
# Connects standard input and output to a service, with socat and hvsock's text protocol (docs/text.md).
#
#   connect.sh PARTITION SERVICE
#
# The service may be a name with spaces: connect.sh parent HV Socket Demo
text=${HVSOCK_TEXT:-/run/hvsock/text}
if [ -z "$HVSOCK_REQUEST" ]; then
    # socat runs this script again, with the socket as its standard streams and the caller's as 3 and 4.
    exec 3<&0 4>&1
    export HVSOCK_REQUEST="CONNECT $*"
    exec socat -t 3600 "UNIX-CONNECT:$text" "EXEC:$0,pipes"
fi
printf '%s\n' "$HVSOCK_REQUEST"
IFS= read -r answer || answer='ERR reset the broker ended the connection'
case $answer in
OK*) ;;
*) echo "connect.sh: ${answer#ERR }" >&2; exit 1 ;;
esac
cat <&3 &     # to the service; its end is a half-close
exec cat >&4  # from the service
