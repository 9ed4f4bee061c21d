#!/usr/bin/env bash
# Make the files in deploy/secrets that compose.yaml hands to the containers; for Kubernetes those
# in another folder: deploy/make-secrets.sh kubernetes/secrets
#
# A file that is there and not empty stays. One that is missing is made: from the variable of its
# name below if that is set, else at random. Those that are put together from others are always
# written anew: so change a password in its own file, and run this again.
set -euo pipefail
cd "$(dirname "$0")"
deploy=$PWD folder=${1:-secrets}

# The folder keeps other users of this machine out. The files are readable, because each container
# runs as a user of its own and may do nothing as root.
umask 022
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"

write() { cat >"$1.new" && mv "$1.new" "$1"; }
random() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }
keep() { [ -s "$1" ] || printf '%s\n' "${2:-$(random)}" | write "$1"; }
optional() { [ -e "$1" ] || printf '%s' "${2:-}" | write "$1"; }

# Passwords stand in URLs and in JSON.
password() {
  keep "$1" "${2:-}"
  [[ $(<"$1") =~ ^[A-Za-z0-9._~-]+$ ]] || {
    echo >&2 "deploy/$folder/$1: only letters, digits and . _ ~ - are possible in this password"
    exit 1
  }
}

keep api-keys "${EVERYDREAM_API_KEYS:-}"  # several are separated by commas
keep secret-key "${EVERYDREAM_SECRET_KEY:-}"
optional webhook-secret "${EVERYDREAM_WEBHOOK_SECRET:-}"
optional hub-token "${HF_TOKEN:-}"
keep s3-access-key "${AWS_ACCESS_KEY_ID:-everydream}"
keep s3-secret-key "${AWS_SECRET_ACCESS_KEY:-}"
password database-password "${POSTGRES_PASSWORD:-}"

fill_in=()
for service in gateway fetcher trainer inferencer notifier; do
  variable="RABBITMQ_$(echo "$service" | tr '[:lower:]' '[:upper:]')_PASSWORD"
  password "broker-password-$service" "${!variable:-}"
  word=$(<"broker-password-$service")
  echo "amqp://$service:$word@${RABBITMQ_HOST:-rabbitmq:5672}/" | write "amqp-url-$service"
  fill_in+=(-e "s/\${broker-password-$service}/$word/")
done
sed "${fill_in[@]}" "$deploy/rabbitmq-logins.json" | write rabbitmq-logins.json
echo "postgresql://everydream:$(<database-password)@${POSTGRES_HOST:-postgres:5432}/everydream" | write database-url
printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' \
  "$(<s3-access-key)" "$(<s3-secret-key)" | write aws-credentials

echo "The secrets are in $PWD; clients use what is in api-keys."
