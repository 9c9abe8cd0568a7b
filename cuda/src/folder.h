// The few things that the journal needs of a file system.
#pragma once

#include <string>
#include <vector>

#include "fork.h"

namespace sonde {

// Makes a folder and those above it, for their owner alone. false, and errno.
bool make_folders(const std::string &path);
// Paths in a folder whose names begin with a prefix, sorted. false, and errno.
bool list_folder(const std::string &folder, const std::string &prefix, std::vector<std::string> *paths);
// Removes a folder with everything in it. false: something stays.
bool remove_folder(const std::string &folder);
// Locks a folder for as long as the returned descriptor is open, that is at most as long as this process lives. -1, and
// errno: EWOULDBLOCK when another has it.
int lock_folder(ForkGuard &guard, const std::string &folder);

} // namespace sonde
