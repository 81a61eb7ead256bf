// Continue token ids greedily with a deployed or exported ONNX model: onnxruntime's C++ API, nothing else.
//
//   ./from_cpp FOLDER MAX_TOKENS ID [ID ...]     prints the new token ids
//
// Build: g++ -std=c++17 -O2 from_cpp.cpp -I INCLUDE libonnxruntime.so.1 -Wl,-rpath,'$ORIGIN' -o from_cpp
// where INCLUDE holds onnxruntime_cxx_api.h and libonnxruntime.so.1 lies beside the program.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

constexpr int64_t kContext = 1024;  // positions to make room for: prompt and answer, at most the manifest's
constexpr size_t kChunk = 256;      // tokens of a prompt at once: more take more memory

class Model {
 public:
  explicit Model(const std::string& folder) : session_(env_, (folder + "/model.onnx").c_str(), Ort::SessionOptions{}) {
    Ort::AllocatorWithDefaultOptions allocator;
    std::vector<std::vector<int64_t>> shapes;
    for (size_t i = 0; i < session_.GetInputCount(); ++i) {
      const std::string name = session_.GetInputNameAllocated(i, allocator).get();
      if (name == "past_length") in_place_ = true;  // the form `fast` writes into the cache that was passed in
      if (name.rfind("past.", 0) == 0) {  // past.{block}.key|value: (layers, 1, heads, positions, head_dim)
        past_names_.push_back(name);
        shapes.push_back(session_.GetInputTypeInfo(i).GetTensorTypeAndShapeInfo().GetShape());
      }
    }
    for (std::vector<int64_t>& shape : shapes) {
      shape[3] = in_place_ ? kContext : 0;
      cache_.push_back(Ort::Value::CreateTensor<float>(allocator, shape.data(), shape.size()));
      const int64_t elements = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>());
      std::fill_n(cache_.back().GetTensorMutableData<float>(), elements, 0.0f);
    }
  }

  // Append tokens to the cache; return the likeliest token after the last of them.
  int64_t Feed(std::vector<int64_t> ids) {
    const std::array<int64_t, 2> ids_shape{1, static_cast<int64_t>(ids.size())};
    const std::array<int64_t, 1> one{1};
    std::array<int64_t, 1> wanted{static_cast<int64_t>(ids.size()) - 1};  // the position whose logits are wanted
    std::array<int64_t, 1> past_length{length_};
    Ort::IoBinding binding(session_);
    binding.BindInput("input_ids", Tensor(ids.data(), ids.size(), ids_shape.data(), 2));
    binding.BindInput("logits_index", Tensor(wanted.data(), 1, one.data(), 1));
    if (in_place_) binding.BindInput("past_length", Tensor(past_length.data(), 1, one.data(), 1));
    binding.BindOutput("logits", memory_);
    for (size_t i = 0; i < cache_.size(); ++i) {
      binding.BindInput(past_names_[i].c_str(), cache_[i]);
      const std::string present = "present" + past_names_[i].substr(4);
      if (in_place_) {
        binding.BindOutput(present.c_str(), cache_[i]);
      } else {
        binding.BindOutput(present.c_str(), memory_);
      }
    }
    session_.Run(Ort::RunOptions{}, binding);
    std::vector<Ort::Value> outputs = binding.GetOutputValues();  // in the order they were bound
    if (!in_place_) {
      for (size_t i = 0; i < cache_.size(); ++i) cache_[i] = std::move(outputs[i + 1]);
    }
    length_ += ids_shape[1];
    const float* logits = outputs[0].GetTensorData<float>();  // (1, V)
    const int64_t vocab_size = outputs[0].GetTensorTypeAndShapeInfo().GetShape().back();
    return std::max_element(logits, logits + vocab_size) - logits;
  }

  int64_t length() const { return length_; }

 private:
  Ort::Value Tensor(int64_t* data, size_t count, const int64_t* shape, size_t rank) const {
    return Ort::Value::CreateTensor<int64_t>(memory_, data, count, shape, rank);
  }

  Ort::Env env_{ORT_LOGGING_LEVEL_ERROR, "from_cpp"};
  Ort::Session session_;
  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<std::string> past_names_;
  std::vector<Ort::Value> cache_;
  bool in_place_ = false;
  int64_t length_ = 0;
};

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: from_cpp FOLDER MAX_TOKENS ID [ID ...]\n";
    return 2;
  }
  try {
    Model model(argv[1]);
    std::vector<int64_t> prompt;
    for (int i = 3; i < argc; ++i) prompt.push_back(std::atoll(argv[i]));
    int64_t token = 0;
    for (size_t start = 0; start < prompt.size(); start += kChunk) {  // prefill
      const size_t end = std::min(start + kChunk, prompt.size());
      token = model.Feed({prompt.begin() + start, prompt.begin() + end});
    }
    for (int count = std::atoi(argv[2]); count > 0; --count) {
      std::cout << token << (count > 1 ? " " : "\n") << std::flush;
      if (count > 1 && model.length() >= kContext) break;
      if (count > 1) token = model.Feed({token});  // decode: one token at a time
    }
  } catch (const Ort::Exception& error) {
    std::cerr << "from_cpp: " << error.what() << "\n";
    return 1;
  }
}
