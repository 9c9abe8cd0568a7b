#include "folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <string_view>
#include <system_error>

namespace sonde {

bool make_folders(const std::string &path) {
    for (size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
        if (mkdir(path.substr(0, end).c_str(), 0700) != 0 && errno != EEXIST) return false;
        if (end == std::string::npos) return true;
    }
}

bool list_folder(const std::string &folder, const std::string &prefix, std::vector<std::string> *paths) {
    DIR *d = opendir(folder.c_str());
    if (d == nullptr) return false;
    for (const dirent *e = readdir(d); e != nullptr; e = readdir(d)) {
        const std::string_view name = e->d_name;
        if (name != "." && name != ".." && name.starts_with(prefix)) paths->push_back(folder + "/" + e->d_name);
    }
    closedir(d);
    std::sort(paths->begin(), paths->end());
    return true;
}

bool remove_folder(const std::string &folder) {
    std::error_code error;
    std::filesystem::remove_all(folder, error);
    return !error;
}

int lock_folder(ForkGuard &guard, const std::string &folder) {
    const int fd = guard.open_file(folder.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
    const int error = errno;
    guard.close_now(fd);
    errno = error;
    return -1;
}

} // namespace sonde
