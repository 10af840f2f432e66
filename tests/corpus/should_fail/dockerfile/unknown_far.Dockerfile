FROM x
frobnicate y
