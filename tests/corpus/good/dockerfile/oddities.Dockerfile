FROM a AS base

RUN a \
   # comment \

   b
	COPY	["a b",	"c"]
ENV P=${P:+$P:}/x Q='$P' R="a\"b" S=a\ b
RUN [ -f "$x" ] || true
RUN echo ÿþ
EXPOSE $PORT
USER \
u