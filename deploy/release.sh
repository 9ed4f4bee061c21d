#!/usr/bin/env bash
# Makes a release in dist/, from what is committed: sdist, wheel, documents, bills of materials and
# licences. `make release` calls it once the console's page and .venv are there.
#
#   PIP_ARGS      as in the Makefile
#   CPU_PIP_ARGS  where torch's CPU builds are: then they are installed and not CUDA's
#
# The wheel is built from the sdist, so that whoever has only that can build it too. It is installed
# into an environment outside the checkout, with what deploy/requirements pins by hash, and has to
# train and draw there.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n==== %s ====\n' "$1"; }
stop() { echo >&2 "deploy/release.sh: $1"; exit 1; }

tools=$PWD/.venv/bin
version=$("$tools/python" -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')
changes=$(git status --porcelain) || stop "this is no git checkout; a release is made from a commit"
[ -z "$changes" ] || stop "commit these first, or they are in no release:"$'\n'"$changes"
grep -q "^## $version - " CHANGELOG.md || stop "CHANGELOG.md has no section '## $version - DATE'; docs/releasing.md tells how it is cut"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf dist
mkdir dist
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
unset PYTHONPATH

make_environment() {  # FOLDER
  "$tools/python" -m venv "$1"
}
install() {  # FOLDER, what pip takes
  local folder=$1
  shift
  # PIP_ARGS are words.
  # shellcheck disable=SC2086
  "$folder/bin/python" -m pip --disable-pip-version-check install --quiet \
    ${PIP_ARGS:-} ${CPU_PIP_ARGS:-} --only-binary :all: --require-hashes "$@"
}

say "sdist and wheel of $version"
make_environment "$work/build"
install "$work/build" -r deploy/requirements/build.txt
"$work/build/bin/python" -m hatchling build --target sdist --directory "$PWD/dist"
tar -xzf "dist/everydream_service-$version.tar.gz" -C "$work"
(cd "$work/everydream_service-$version" && "$work/build/bin/python" -m hatchling build --target wheel --directory "$OLDPWD/dist")
wheel=$PWD/dist/everydream_service-$version-py3-none-any.whl
ls -l dist

say "the wheel, installed by hashes outside the checkout"
make_environment "$work/clean"
on=${CPU_PIP_ARGS:+-cpu}
hash=$(sha256sum "$wheel" | cut -d ' ' -f 1)
echo "everydream-service[gateway,fetcher,trainer,inferencer,notifier] @ file://$wheel --hash=sha256:$hash" >"$work/wheel.txt"
install "$work/clean" -r "$work/wheel.txt" \
  -r deploy/requirements/gateway.txt -r deploy/requirements/fetcher.txt -r deploy/requirements/notifier.txt \
  -r "deploy/requirements/trainer$on.txt" -r "deploy/requirements/inferencer$on.txt"
"$work/clean/bin/python" -m pip --disable-pip-version-check check
installed=$("$work/clean/bin/everydream" --version)
[ "$installed" = "$version" ] || stop "the wheel says that it is $installed"

say "the demo, with the wheel alone"
# Elsewhere, and in a home of its own: nothing of the checkout or the user can help.
mkdir "$work/home"
(cd "$work/home" && HOME=$work/home "$work/clean/bin/everydream" demo "$work/demo-output")
ls "$work/demo-output"
page=$("$work/clean/bin/python" -c 'from importlib.resources import files; print(files("services.gateway") / "console/dist/index.html")')
[ -s "$page" ] || stop "the wheel has no console: $page"

say "documents"
make --no-print-directory docs
tar -C dist -czf "dist/everydream-service-$version-documents.tar.gz" documents
rm -r dist/documents

say "licences"
# All are listed. What NVIDIA's packages say of its own licence, in four ways, is not judged.
nvidia=$("$work/clean/bin/python" -c 'from importlib.metadata import distributions
print(*(each.name for each in distributions() if each.name.startswith("nvidia-") or each.name == "cuda-toolkit"))')
(cd "$work" && "$tools/pip-licenses" --python clean/bin/python --format=markdown --with-urls --output-file licences.md)
# The names are words.
# shellcheck disable=SC2086
"$tools/pip-licenses" --python "$work/clean/bin/python" --ignore-packages $nvidia >"$work/judged"
mv "$work/licences.md" dist

# What a wheel bundles may have another licence than the package says of itself.
# shellcheck disable=SC2086
"$work/clean/bin/python" - $nvidia <<'END'
import re
import sys
import tomllib
from importlib.metadata import distributions

known = tomllib.load(open("pyproject.toml", "rb"))["tool"]["everydream"]["bundled"]
gpl = re.compile(r"\bGNU\s+(AFFERO\s+)?GENERAL\s+PUBLIC\s+LICENSE\b|\bA?GPL", re.IGNORECASE)
texts = re.compile(r"(licen[sc]e|copying|notice)[^/]*(\.(txt|md|rst))?$", re.IGNORECASE)
found = {
    each.name
    for each in distributions()
    for file in each.files or ()
    if texts.search(str(file)) and file.suffix not in {".py", ".pyc"}
    if gpl.search(file.locate().read_text(errors="replace"))
}
if unread := sorted(found - known.keys() - {*sys.argv[1:]}):
    sys.exit(f"these speak of the GPL in their licences: read them, then name each with what it is "
             f"in [tool.everydream.bundled] of pyproject.toml: {', '.join(unread)}")
END

say "bills of materials"
"$tools/cyclonedx-py" environment "$work/clean/bin/python" --pyproject pyproject.toml --output-reproducible \
  --output-file dist/sbom-python.cdx.json
# npm wants a version of what it describes, and the only place that has ours is pyproject.toml.
mkdir "$work/console"
cp services/gateway/console/package.json services/gateway/console/package-lock.json "$work/console"
(cd "$work/console" && npm pkg set version="$version" && npm sbom --sbom-format cyclonedx --omit dev --package-lock-only) >dist/sbom-console.cdx.json

(cd dist && sha256sum -- * >"$work/SHA256SUMS")
mv "$work/SHA256SUMS" dist
say "dist/ has release $version"
cat dist/SHA256SUMS
