#!/bin/sh
# Makes detectors/german anew, in about two minutes: captures what the model computes for 1296 labelled requests, then
# trains on it. Needs build/sonde and curl. The prompts are not those of the demo. Usage: detectors/train_german.sh OUT
set -eu
cd "$(dirname "$0")/.."
out=$1
dir=$(mktemp -d)
trap 'kill $engine $pipeline 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
cat >"$dir/sonde.yaml" <<YAML
bus: {embedded: {store_dir: $dir/bus, listen: ""}}
agent: {socket: $dir/sock, dead_letter: {dir: $dir/dead-agent}}
materializer: {lake: $dir/lake, dead_letter_dir: $dir/dead-materializer}
http: {listen: ""}
YAML
build/sonde run --config "$dir/sonde.yaml" 2>"$dir/run.log" & pipeline=$!
build/sonde engine --model models/trilingual --listen 127.0.0.1:18800 --ring-socket "$dir/sock" --wait-agent 30s \
  --hooks resid_post,token_ids 2>"$dir/engine.log" & engine=$!
until curl -sf 127.0.0.1:18800/healthz >"$dir/health"; do sleep 0.2; done

for round in 0 1 2 3 4 5 6 7 8 9 10 11; do
  awk -F '\t' -v r="$round" '{printf "{\"prompt\": \"%s\", \"max_tokens\": 64, \"temperature\": 0.9, \"seed\": %d, " \
    "\"sonde\": {\"request_id\": \"%s-%d-%d\", \"labels\": {\"language\": \"%s\"}}}\n", $2, r*1000+NR, $1, NR, r, $1}' \
    detectors/german.prompts.tsv
done >"$dir/requests"
<"$dir/requests" tr '\n' '\0' | xargs -0 -n 1 -P 24 curl -sf -o "$dir/answer" 127.0.0.1:18800/v1/completions -d

kill $engine; wait $engine || true
kill $pipeline; wait $pipeline || true
build/sonde lake verify --lake "$dir/lake"
build/sonde detect train --lake "$dir/lake" --layer 2 --positive language=de --holdout 0.4 --name german --out "$out" \
  --description "Is this German? A stand-in for a property of a text that nobody wants to see."
