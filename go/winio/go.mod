module hvsock.dev/go/winio

go 1.19

require (
	github.com/Microsoft/go-winio v0.6.2
	hvsock.dev/go v0.0.0
)

replace hvsock.dev/go => ../
