#!/bin/sh
# Writes what the containers of compose.yaml read as secrets into certs/, and into .env beside this file the user who may:
# the containers that read them run as that user. Where they are there, the two certificates alone are made anew; then
# `docker compose restart gateway`, since a mounted file stays the old one. Root's files go to the images' user, 10001:
# no container runs as root.
#
#   deploy/compose/make-secrets.sh [NAMES]      the gateway's, as for deploy/make-certs.sh
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
deploy/make-certs.sh certs "$@"
[ -e certs/grafana-password ] || openssl rand -hex 16 > certs/grafana-password
user=$(id -u):$(id -g)
if [ "$(id -u)" = 0 ]; then
    user=10001:10001
    chown "$user" certs/server.pem certs/server.key certs/tokens certs/grafana-password
fi
grep -sv '^CLICKBERT_USER=' "$here/.env" > "$here/.env.new" || true
echo "CLICKBERT_USER=$user" >> "$here/.env.new"
mv "$here/.env.new" "$here/.env"
echo "secrets: deploy/compose/.env has CLICKBERT_USER=$user, who may read server.key, tokens and grafana-password in certs"
