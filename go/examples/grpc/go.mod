module hvsock.dev/go/examples/grpc

go 1.19

require (
	google.golang.org/grpc v1.33.3
	hvsock.dev/go v0.0.0
)

replace hvsock.dev/go => ../..
