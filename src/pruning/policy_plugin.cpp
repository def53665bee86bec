// SPDX-License-Identifier: Apache-2.0
#include "espalier/policy_plugin.h"

#include <dlfcn.h>

#include <utility>
#include <vector>

#include "espalier/error.h"
#include "pruning/policy_spec.h"

namespace espalier {

struct PolicyPlugin::Library {
  Library(void* opened, std::filesystem::path path) : handle(opened), file(std::move(path)) {}
  ~Library() { dlclose(handle); }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  template <typename Function>
  Function* find(const char* symbol) const {
    auto* function = reinterpret_cast<Function*>(dlsym(handle, symbol));
    if (!function)
      throw Error(file.string() + ": not a policy plugin (it exports no " + symbol + "; see espalier/policy_plugin.h)");
    return function;
  }

  void* handle;
  std::filesystem::path file;
  std::string name;
  PluginFactory factory = nullptr;
};

PolicyPlugin PolicyPlugin::load(const std::filesystem::path& file) {
  std::error_code code;
  if (!std::filesystem::is_regular_file(file, code)) throw Error(file.string() + ": no such file");
  // With a slash in it the path is not looked for elsewhere.
  void* handle = dlopen(std::filesystem::absolute(file).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) throw Error(file.string() + ": cannot be loaded: " + dlerror());
  auto library = std::make_shared<Library>(handle, file);
  const std::string built_for = library->find<const char*()>("espalier_plugin_built_for")();
  if (built_for != ESPALIER_PLUGIN_BUILT_FOR)
    throw Error(file.string() + ": built for " + built_for + ", this is " + ESPALIER_PLUGIN_BUILT_FOR);
  library->name = library->find<const char*()>("espalier_plugin_name")();
  library->find<void(PluginFactory*)>("espalier_plugin_factory")(&library->factory);
  return PolicyPlugin(std::move(library));
}

std::string_view PolicyPlugin::name() const {
  return library_->name;
}

const std::filesystem::path& PolicyPlugin::file() const {
  return library_->file;
}

std::vector<PolicyOption> PolicyPlugin::options() const {
  std::vector<PolicyOption> options;
  // Plugins may leave it out.
  using Tell = void(std::vector<PolicyOption>*);
  if (auto* tell = reinterpret_cast<Tell*>(dlsym(library_->handle, "espalier_plugin_options"))) tell(&options);
  return options;
}

PolicyPtr PolicyPlugin::make(std::string_view spec) const {
  const std::vector<PolicySpec> parts = parse_policy_spec(spec);
  if (parts.size() != 1)
    throw Error(library_->name + ": a plugin makes one policy; pipelines of several are chain()'s");
  if (parts.front().name != library_->name)
    throw Error(std::string(spec) + ": the plugin " + library_->file.string() + " has the policy " + library_->name);
  PolicyPtr policy = library_->factory(parts.front().options);
  if (!policy) throw Error(library_->name + ": the plugin made no policy");
  // Members go in reverse order: the policy before the code of its destructor.
  struct Loaded {
    std::shared_ptr<const Library> library;
    PolicyPtr policy;
  };
  auto loaded = std::make_shared<const Loaded>(Loaded{library_, std::move(policy)});
  return {loaded, loaded->policy.get()};
}

}  // namespace espalier
