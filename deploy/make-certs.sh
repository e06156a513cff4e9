#!/bin/sh
# Writes a folder for `python -m serving --secure DIR` and `python -m deploy gateway --secrets DIR`, for tests and laptops:
# an authority of its own, a certificate for the server, one for callers, the servers' token, and the gateway's tokens,
# with one caller, `laptop`. Run again, it makes the two certificates anew, and the running server takes them (it looks at
# the folder); the authority and the tokens are kept. In production the certificates come from your own authority.
#
#   deploy/make-certs.sh DIR [NAMES]       NAMES as subjectAltName has them, for example DNS:ranking.example,IP:10.0.0.7;
#                                          by default those of the certificate there is, else this machine's own
set -eu
umask 077
folder=$1
days=${DAYS:-30}
mkdir -p "$folder"
cd "$folder"
former=$(openssl x509 -in server.pem -noout -ext subjectAltName 2> /dev/null | sed -n '2{s/IP Address/IP/g; s/ //g; p}')
names=${2:-${former:-DNS:localhost,IP:127.0.0.1,IP:0:0:0:0:0:0:0:1}}

new_key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"

kept=
for file in ca.pem token tokens; do
    [ ! -e "$file" ] || kept="$kept $file"
done
[ -e ca.pem ] || openssl req -x509 $new_key -keyout ca.key -out ca.pem -days 3650 -subj /CN=clickbert-laptop-authority \
    -addext keyUsage=critical,keyCertSign,cRLSign 2> /dev/null
[ -e token ] || openssl rand -hex 32 > token
[ -e tokens ] || echo "laptop $(openssl rand -hex 32)" > tokens

issue() { # NAME SUBJECT_ALT_NAME EXTENDED_KEY_USAGE
    printf 'subjectAltName=%s\nextendedKeyUsage=%s\n' "$2" "$3" > "$1.extensions"
    openssl req $new_key -keyout "$1.key.new" -out "$1.csr" -subj "/CN=$1" 2> /dev/null
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -set_serial "0x$(openssl rand -hex 16)" \
        -extfile "$1.extensions" -days "$days" -out "$1.pem.new" 2> /dev/null
    mv "$1.key.new" "$1.key"
    mv "$1.pem.new" "$1.pem"
    rm "$1.csr" "$1.extensions"
}
issue server "$names" serverAuth
issue client DNS:client.clickbert.invalid clientAuth
echo "certs: $PWD has ca.pem, server.pem, client.pem, their keys, token and tokens; valid for $days days"
[ -z "$kept" ] || echo "certs: kept as they were:$kept (remove \`token\`, then run again, for a new one of the server; add callers to \`tokens\`)"
