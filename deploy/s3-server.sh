#!/bin/sh
# Runs in the container `s3`: SeaweedFS, of which only the S3 interface can be reached from outside.
set -eu

for secret in s3-access-key s3-secret-key; do
  # Without keys it would be open to everybody.
  [ -s "/run/secrets/$secret" ] || { echo >&2 "/run/secrets/$secret is missing or empty"; exit 1; }
done
AWS_ACCESS_KEY_ID=$(cat /run/secrets/s3-access-key)
AWS_SECRET_ACCESS_KEY=$(cat /run/secrets/s3-secret-key)
# The S3 interface's gRPC port cannot be bound to another address. It can add users; without this key
# it would do so for everybody.
WEED_JWT_FILER_SIGNING_KEY=$(head -c 32 /dev/urandom | base64)
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY WEED_JWT_FILER_SIGNING_KEY

# The keys go by standard input: arguments can be read by every process.
put_bucket() {
  printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" |
    curl --config - --silent --output /dev/null --write-out '%{http_code}' --max-time 5 \
      --aws-sigv4 aws:amz:us-east-1:s3 --header 'x-amz-content-sha256: UNSIGNED-PAYLOAD' \
      --request PUT "http://127.0.0.1:8333/$S3_BUCKET" || true
}

# Until it answers; 409: the bucket is there already.
create_bucket() {
  while :; do
    case $(put_bucket) in 200 | 409) return ;; esac
    sleep 1
  done
}
create_bucket &

# Master, volumes and filer ask for no key: they listen inside the container only.
exec weed -logtostderr=true server -dir=/data -ip=127.0.0.1 -ip.bind=127.0.0.1 \
  -master.telemetry=false -master.volumeSizeLimitMB=1024 \
  -volume.max=0 -volume.preStopSeconds=1 \
  -s3 -s3.ip.bind=0.0.0.0 -s3.port=8333 -s3.iam=false -s3.port.iceberg=0 -s3.port.lance=0
