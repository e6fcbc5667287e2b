#!/bin/sh
# What the user of BRIDGE_AMQP_URL needs at RabbitMQ, and nothing more:
#
#   docker/rabbitmq/permissions.sh ROW USER
#
# on the broker's host, for a user of the bridge's own (`rabbitmqctl add_user USER`): it replaces whatever the user was
# permitted before. With a broker in a container, RABBITMQCTL='docker exec rabbitmq rabbitmqctl' goes before the
# command. The rows:
#
#   read-queue     BRIDGE_QUEUE, which somebody else has made and bound: read that queue. The least. From RabbitMQ 4.3 on,
#                  the bridge can't see whether the exchange exists or was declared again, and warns of that in
#                  /readyz. Grant read on the exchange too, and it can. The same holds for read-stream.
#   own-queue      BRIDGE_QUEUE, which the bridge makes and binds.
#   exclusive      neither: the bridge makes a queue for each connection.
#   read-stream    BRIDGE_HISTORY=stream, on a stream that somebody else has made and bound.
#   own-stream     BRIDGE_HISTORY=stream, on a stream that the bridge makes and binds.
#
# In each the exchange is there already (a bridge that has to make it needs configure on it), and rejected events are
# only counted: BRIDGE_REJECT_EXCHANGE=off. REJECTS=bridge.rejected before the command adds what the bridge needs to
# make that exchange and its queue, and to publish to it.
#
# EXCHANGE, QUEUE, STREAM and VHOST before the command name others than the ones below. Permissions are regular
# expressions, one each for configure, write and read; a permission on a name is one on the exchange and on the queue of
# that name.
set -eu

EXCHANGE=${EXCHANGE:-killmails}
QUEUE=${QUEUE:-killmails.bridge}
STREAM=${STREAM:-bridge.history}
REJECTS=${REJECTS:-}
VHOST=${VHOST:-/}

if [ $# -ne 2 ]; then
  sed -n '2,$ { /^#/!q; s/^# \{0,1\}//p; }' "$0" >&2
  exit 2
fi

# A dot in a name is a dot, and not whatever stands there.
one() { printf '%s' "$1" | sed 's/[][\.*^$+?(){}|]/\\&/g'; }
exchange=$(one "$EXCHANGE") queue=$(one "$QUEUE") stream=$(one "$STREAM")

case $1 in
  read-queue) configure='' write='' read=$queue ;;
  # Binding is write on the queue and read on the exchange.
  own-queue) configure=$queue write=$queue read="$queue|$exchange" ;;
  # The broker gives it a name that begins with this.
  exclusive) configure='amq\.gen-.*' write='amq\.gen-.*' read="amq\\.gen-.*|$exchange" ;;
  # amq.default is the exchange by which the bridge finds the stream's end.
  read-stream) configure='' write='amq\.default' read=$stream ;;
  own-stream) configure=$stream write="$stream|amq\\.default" read="$stream|$exchange" ;;
  *) echo "$0: there is no row '$1': read-queue, own-queue, exclusive, read-stream or own-stream" >&2; exit 2 ;;
esac

if [ -n "$REJECTS" ]; then
  rejects=$(one "$REJECTS")
  configure=${configure:+$configure|}$rejects write=${write:+$write|}$rejects read=$read\|$rejects
fi

# Nothing is ^$; the empty text would be taken for that too, but it does not look like it.
anchored() { if [ -n "$1" ]; then printf '^(%s)$' "$1"; else printf '^$'; fi; }

# Not in quotes: it may be several words.
exec ${RABBITMQCTL:-rabbitmqctl} set_permissions -p "$VHOST" "$2" \
  "$(anchored "$configure")" "$(anchored "$write")" "$(anchored "$read")"
