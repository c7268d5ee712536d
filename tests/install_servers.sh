#!/bin/sh
# Installs Prometheus, Alertmanager, VictoriaMetrics and Chromium from Debian's packages where root and apt allow it;
# elsewhere the tests that need them say so.
set -eu
packages=""
need() { command -v "$1" >/dev/null 2>&1 || packages="$packages $2"; }
need prometheus prometheus
need promtool prometheus
need prometheus-alertmanager prometheus-alertmanager
need amtool prometheus-alertmanager
need chromium chromium
need chromedriver chromium-driver
need victoria-metrics victoria-metrics
need systemd-analyze systemd
need npm npm
[ -n "$packages" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "not installed, and not installable from here:$packages" >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086  # a list of names on purpose
apt-get install -y -qq --no-install-recommends $packages >/dev/null
