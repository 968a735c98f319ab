module hvsock.dev/go

go 1.19
