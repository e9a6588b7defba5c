package bpf

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-stem datapath -type event -type direction -type action -type verdict -type number_kind -type conn_bits -type reason datapath datapath.c -- -mcpu=v3 -nostdinc -Iinclude -I. -Wall -Wextra -Werror -Wno-unused-function -Wno-unused-parameter
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-stem steer -no-global-types steer steer.c -- -mcpu=v3 -nostdinc -Iinclude -I. -Wall -Wextra -Werror -Wno-unused-function
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-stem service -type service_count service service.c -- -mcpu=v3 -nostdinc -Iinclude -I. -Wall -Wextra -Werror -Wno-unused-function -Wno-unused-parameter
//go:generate go run ./reasongen reasons.h ../flow/reason_gen.go
