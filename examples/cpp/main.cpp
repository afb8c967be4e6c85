// Runs a TorchScript module with weights from a FlashPack file; no Python. See README.md for how to build it.
//
//     run LIBRARY MODULE FILE      e.g. libflashpack_torch.so model.pt model.flashpack

#include <dlfcn.h>
#include <torch/script.h>

#include <cstdio>
#include <exception>

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s LIBRARY MODULE FILE\n", argv[0]);
    return 2;
  }
  // The operators register themselves with torch; the library must stay loaded.
  if (dlopen(argv[1], RTLD_NOW) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  try {
    torch::jit::Module module = torch::jit::load(argv[2]);
    module.get_method("load")({argv[3]});

    const torch::NoGradGuard no_grad;
    const at::Tensor output = module.forward({torch::ones({1, 8})}).toTensor().contiguous();
    for (int64_t i = 0; i < output.numel(); ++i) {
      std::printf(i > 0 ? " %.6f" : "%.6f", output.const_data_ptr<float>()[i]);
    }
    std::printf("\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
