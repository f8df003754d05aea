#!/usr/bin/env bash
# make_models.sh SLUICE SHAPES FOLDER - the models of this checkout as a daemon takes them.
#
# FOLDER gets shapes-t2v and shapes-i2v, copied since a daemon follows no link that leads out
# of its models' folder, and of each its -quant variant, which `sluice convert` makes.
set -euo pipefail

sluice=$1 shapes=$2 folder=$3

rm -rf "$folder.new"
mkdir -p "$folder.new"
for name in shapes-t2v shapes-i2v; do
    cp -R "$shapes/$name" "$folder.new/" # links from one to the other stay links
done
for name in shapes-t2v shapes-i2v; do
    "$sluice" convert --to quant "$folder.new/$name" "$folder.new/$name-quant"
done
rm -rf "$folder"
mv "$folder.new" "$folder"
