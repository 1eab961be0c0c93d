#!/bin/sh
# A key and certificate of this pod's own, signed by the cluster's CA (secret clusterray-ca: ca.crt and
# ca.key, mounted at /etc/ca in the init container alone). Ray then encrypts and checks all gRPC traffic,
# in both directions.
set -eu
umask 077
ca=${CA_DIR:-/etc/ca} out=${TLS_DIR:-/etc/ray/tls}
cp "$ca/ca.crt" "$out/ca.crt"
openssl req -new -newkey rsa:2048 -nodes -keyout "$out/tls.key" -out "$out/tls.csr" \
  -subj "/O=clusterray/CN=ray-pod"
cat > "$out/tls.ext" <<EOF
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature,keyEncipherment
extendedKeyUsage=serverAuth,clientAuth
subjectAltName=DNS:localhost,DNS:*.$NAMESPACE.svc.cluster.local,IP:127.0.0.1,IP:$POD_IP
EOF
openssl x509 -req -in "$out/tls.csr" -CA "$ca/ca.crt" -CAkey "$ca/ca.key" \
  -set_serial "0x$(openssl rand -hex 16)" -days 90 -sha256 -extfile "$out/tls.ext" -out "$out/tls.crt"
rm "$out/tls.csr" "$out/tls.ext"
