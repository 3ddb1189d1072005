#!/bin/sh
# Oscar, emulated, and the service in front of it. Prints sample calls that are signed; ends with Ctrl-C.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python}
mapper="$python -m mapper"
sandbox=${SANDBOX_PORT:-8090}
port=${PORT:-8080}

export MAPPER_ENGINE=oscar
export NACELLE_SIGNING_SECRETS=a-secret-for-trying-out
export MAPPER_LEDGER_URL=sqlite:///oscar-ledger.db
export OSCAR_BASE_URL=http://127.0.0.1:$sandbox/oscar
export OSCAR_API_KEY=anything
export OSCAR_ACCOUNTS_SECRET=another-secret-for-trying-out

$mapper sandbox --port "$sandbox" &
emulator=$!
$mapper serve --port "$port" &
service=$!
trap 'kill $emulator $service 2>/dev/null' EXIT INT TERM

# wait_for PORT PROCESS: until the process listens there; ends with it where it dies
wait_for() {
    until "$python" -c "import socket; socket.create_connection(('127.0.0.1', $1), 1)" 2>/dev/null; do
        kill -0 "$2"
        sleep 0.1
    done
}

wait_for "$sandbox" "$emulator"
wait_for "$port" "$service"

for call in "validate checkout" "consume order"; do
    set -- $call
    printf '\ncurl -s http://127.0.0.1:%s/promotions/%s -H "content-type: application/json" \\\n  -H "%s" --data-binary @%s\n' \
        "$port" "$1" "$($mapper sign "samples/$2.json")" "$PWD/samples/$2.json"
done
wait
