#!/usr/bin/env bash
# Create logins for other programs on the broker, with no more rights than they need.
#
#   rabbitmq-users.sh producer NAME   may submit jobs, and receive how jobs start and end
#   rabbitmq-users.sh consumer NAME   may receive everything, in queues named NAME.*; publishes nothing
#
# The password is read from standard input. RABBITMQCTL is the rabbitmqctl command, for example
# "docker compose exec -T rabbitmq rabbitmqctl"; VHOST is the virtual host (default /).
set -euo pipefail

kind=${1:-} name=${2:-}
read -r -a ctl <<<"${RABBITMQCTL:-rabbitmqctl}"
vhost=${VHOST:-/}
[[ $kind =~ ^(producer|consumer)$ && $name =~ ^[A-Za-z0-9_-]+$ ]] || {
  echo "usage: rabbitmq-users.sh producer|consumer NAME   (letters, digits, - and _)" >&2
  exit 2
}
case $name in # the first words of the names of our own queues, and of the broker's
gateway | fetcher | trainer | inferencer | notifier | control | everydream | amq)
  echo "$name: queues of the services or the broker begin so; take another name" >&2
  exit 2
  ;;
esac
IFS= read -r password || [ -n "$password" ] || { echo "no password on the standard input" >&2; exit 2; }

# Its own queues: those that the server names, and those that begin with the login.
own="amq\\.gen.*|$name\\..*"
if [ "$kind" = producer ]; then
  write="^(everydream|$own)\$" says='^job\.requested$'
  hears='^job\.(refused|started|completed|failed|cancelled|timed_out)$'
else
  write="^($own)\$" says='^$' hears='.*'
fi
"${ctl[@]}" add_user "$name" "$password"
"${ctl[@]}" set_permissions -p "$vhost" "$name" "^($own)\$" "$write" "^(everydream|$own)\$"
"${ctl[@]}" set_topic_permissions -p "$vhost" "$name" everydream "$says" "$hears"
