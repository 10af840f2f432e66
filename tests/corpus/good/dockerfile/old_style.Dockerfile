from ubuntu:14.04
maintainer Someone <someone@example.org>
env DEBIAN_FRONTEND noninteractive
label a.b=c "d e"="f g" \
      h='i j'
add https://example.org/x.tar.gz /tmp/
volume /data /logs
onbuild run make && \
    make install
stopsignal SIGTERM
healthcheck --interval=30s --timeout=3s \
  cmd curl -f http://localhost/ || exit 1
cmd echo hi
