import UIKit

/// A file of the app's bundle.
func resource(_ name: String, _ fileExtension: String) throws -> URL {
    guard let url = Bundle.main.url(forResource: name, withExtension: fileExtension) else {
        throw CocoaError(.fileNoSuchFile)
    }
    return url
}

/// How the exported file wants its image, from the record that came out of it: resize, then crop the centre. Everything
/// after that (scale, channel order, softmax) is inside the file.
struct ModelInput: Decodable {
    struct Input: Decodable {
        let dtype: String
    }
    struct Output: Decodable {
        let name: String
    }
    struct Labels: Decodable {
        let count: Int
    }
    struct Crop: Decodable {
        let width: Int
        let height: Int
    }
    struct Preprocessing: Decodable {
        let resize: [String: Int]  // "shortest_edge", or "width" and "height"
        let crop: Crop
    }
    let input: Input
    let output: Output
    let labels: Labels
    let preprocessing: Preprocessing

    static func load() throws -> ModelInput {
        let record = try Data(contentsOf: resource("mobilevit_hub", "json"))
        let loaded = try JSONDecoder().decode(ModelInput.self, from: record)
        precondition(loaded.output.name == "probabilities", "export the file with --output-type probabilities")
        return loaded
    }

    /// Makes the input from a photo: upright, at the size of the input, in RGB.
    func prepare(_ photo: UIImage) -> UIImage {
        let size = CGSize(width: preprocessing.crop.width, height: preprocessing.crop.height)
        let resized = self.resized(photo.size)
        let place = CGRect(
            x: (size.width - resized.width) / 2, y: (size.height - resized.height) / 2,
            width: resized.width, height: resized.height)
        let format = UIGraphicsImageRendererFormat()
        format.scale = 1  // a point is a pixel; else the picture has the size of the screen's pixels
        format.preferredRange = .standard  // 8 bits
        return UIGraphicsImageRenderer(size: size, format: format).image { renderer in
            UIColor.black.setFill()  // shows where the resized photo is smaller than the crop
            renderer.fill(CGRect(origin: .zero, size: size))
            renderer.cgContext.interpolationQuality = .high  // averages when it shrinks
            photo.draw(in: place)  // turns the photo upright; its `cgImage` is as the sensor was held
        }
    }

    private func resized(_ size: CGSize) -> CGSize {
        if let edge = preprocessing.resize["shortest_edge"] {
            let scale = CGFloat(edge) / min(size.width, size.height)
            return CGSize(width: size.width * scale, height: size.height * scale)
        }
        return CGSize(width: preprocessing.resize["width"] ?? 0, height: preprocessing.resize["height"] ?? 0)
    }
}
